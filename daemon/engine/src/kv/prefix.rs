//! Full pages that outlive the sequence they were computed for, found again by what was read before and in them.
//!
//! A tree: an edge is the tokens of one page, compared as they are and not by a hash alone, so a page is found only
//! below exactly the tokens it was computed after. A page here is never written again.
//!
//! Invariant: whoever holds a page holds every page above it. So an idle page (one that no sequence holds) has only
//! idle pages below it, and taking idle leaves one after the other reaches every idle page.

use super::name::PageName;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// The pages below one page, by their tokens.
type Children = HashMap<Arc<[u32]>, u32>;

#[derive(Debug)]
struct Node {
    parent: Option<u32>,
    tokens: Arc<[u32]>,
    children: Children,
    /// When the last sequence let go of it, if none holds it.
    idle_since: Option<u64>,
    /// What it is called, if pages are.
    name: Option<PageName>,
    /// Whether it was found again.
    found: bool,
}

/// A page that is worth keeping, and how many texts were used since its own was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Worthy {
    pub(super) page: u32,
    pub(super) age: u64,
}

/// The tree. Pages are named by their number; who holds them is counted elsewhere.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    roots: Children,
    /// By page; `None` for pages that are not in the tree.
    nodes: Vec<Option<Node>>,
    idle_count: usize,
    /// Idle pages with nothing below them, longest idle first.
    leaves: BTreeSet<(u64, u32)>,
    /// The name of the empty text, once pages have names.
    root: Option<PageName>,
    /// Pages that are worth keeping, or were; those before them in a text come before them.
    worthy: VecDeque<Worthy>,
}

impl Prefixes {
    /// An empty tree over `count` pages.
    pub(super) fn new(count: u32) -> Prefixes {
        Prefixes {
            nodes: (0..count).map(|_| None).collect(),
            ..Prefixes::default()
        }
    }

    /// Gives the pages names that come from now on; `root` is that of the empty text.
    pub(super) fn set_root(&mut self, root: PageName) {
        self.root = Some(root);
    }

    /// An empty tree over as many pages, and those that were idle in this one.
    pub(super) fn emptied(&mut self) -> Vec<u32> {
        let pages = (0..).zip(&self.nodes);
        let idle =
            pages.filter(|(_, node)| node.as_ref().is_some_and(|node| node.idle_since.is_some()));
        let idle = idle.map(|(page, _)| page).collect();
        self.roots.clear();
        self.nodes.fill_with(|| None);
        self.leaves.clear();
        self.worthy.clear();
        self.idle_count = 0;
        idle
    }

    /// The name of a page, or without one of the empty text.
    pub(super) fn name(&self, page: Option<u32>) -> Option<PageName> {
        match page {
            None => self.root,
            Some(page) => self.node(page)?.name,
        }
    }

    /// Notes that a page was found again by who began as those before did: it is worth keeping.
    pub(super) fn found(&mut self, page: u32) {
        if let Some(node) = self.node_mut(page)
            && node.name.is_some()
            && !node.found
        {
            node.found = true;
            self.worthy.push_back(Worthy { page, age: 0 });
            self.tidy();
        }
    }

    /// Leaves out what gave way since it was worth keeping, once that may be half of all: nobody may ask for them for long.
    fn tidy(&mut self) {
        if self.worthy.len() > 2 * self.nodes.len() {
            let (nodes, mut seen) = (&self.nodes, HashSet::new());
            self.worthy.retain(|worthy| {
                let node = nodes.get(worthy.page as usize).and_then(Option::as_ref);
                node.is_some_and(|node| node.found) && seen.insert(worthy.page)
            });
        }
    }

    /// Has idle pages be worth keeping that are not yet: at most `most`, those that rested last before others.
    pub(super) fn all_found(&mut self, most: usize) {
        let mut idle: Vec<(u64, usize, u32)> = (0..)
            .zip(&self.nodes)
            .filter_map(|(page, node)| {
                let node = node.as_ref().filter(|node| node.name.is_some())?;
                Some((node.idle_since?, self.depth(page), page))
            })
            .collect();
        idle.sort_unstable_by_key(|&(since, depth, page)| (std::cmp::Reverse(since), depth, page));
        let (mut age, mut last) = (0, None);
        for (since, _, page) in idle.into_iter().take(most) {
            if last != Some(since) {
                age += 1;
                last = Some(since);
            }
            if let Some(node) = self.node_mut(page).filter(|node| !node.found) {
                node.found = true;
                self.worthy.push_back(Worthy { page, age });
            }
        }
    }

    /// The next page that is worth keeping.
    pub(super) fn next_worthy(&mut self) -> Option<Worthy> {
        while let Some(worthy) = self.worthy.pop_front() {
            // It may have given way since, and its number be another page's.
            if self.node(worthy.page).is_some_and(|node| node.found) {
                return Some(worthy);
            }
        }
        None
    }

    /// Number of pages before this one in its text.
    pub(super) fn depth(&self, page: u32) -> usize {
        let parent = |page: &u32| self.node(*page)?.parent;
        std::iter::successors(parent(&page), parent).count()
    }

    /// The page before this one, and its tokens.
    pub(super) fn place(&self, page: u32) -> Option<(Option<u32>, &[u32])> {
        let node = self.node(page)?;
        Some((node.parent, &node.tokens))
    }

    fn node(&self, page: u32) -> Option<&Node> {
        self.nodes.get(page as usize)?.as_ref()
    }

    fn node_mut(&mut self, page: u32) -> Option<&mut Node> {
        self.nodes.get_mut(page as usize)?.as_mut()
    }

    /// Whether `page` is in the tree, so that it must not be written.
    pub(super) fn contains(&self, page: u32) -> bool {
        self.node(page).is_some()
    }

    /// Pages that nobody holds.
    pub(super) fn idle_count(&self) -> usize {
        self.idle_count
    }

    /// The page of `tokens` below `parent`.
    pub(super) fn find(&self, parent: Option<u32>, tokens: &[u32]) -> Option<u32> {
        let children = match parent {
            None => &self.roots,
            Some(parent) => &self.node(parent)?.children,
        };
        children.get(tokens).copied()
    }

    /// The page below `parent` whose tokens begin with most of those of `tokens`, and how many these are.
    pub(super) fn closest(&self, parent: Option<u32>, tokens: &[u32]) -> Option<(u32, usize)> {
        let children = match parent {
            None => &self.roots,
            Some(parent) => &self.node(parent)?.children,
        };
        let alike = |child: &[u32]| child.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let closest = children.iter().map(|(child, &page)| (page, alike(child)));
        closest
            .max_by_key(|&(page, alike)| (alike, page))
            .filter(|&(_, alike)| alike > 0)
    }

    /// Puts a held page in its place, which must be free.
    pub(super) fn insert(&mut self, page: u32, parent: Option<u32>, tokens: &[u32]) {
        let name = self.name(parent).map(|above| above.below(tokens));
        let tokens: Arc<[u32]> = tokens.into();
        let exists = (page as usize) < self.nodes.len();
        let children = match parent {
            None => Some(&mut self.roots),
            Some(parent) => self.node_mut(parent).map(|parent| &mut parent.children),
        };
        let (Some(children), true) = (children, exists) else {
            return;
        };
        children.insert(Arc::clone(&tokens), page);
        self.nodes[page as usize] = Some(Node {
            parent,
            tokens,
            children: Children::new(),
            idle_since: None,
            name,
            found: false,
        });
    }

    /// Notes that the last sequence let go of `page`. False if it is not in the tree.
    pub(super) fn rest(&mut self, page: u32, now: u64) -> bool {
        let Some(node) = self.node_mut(page) else {
            return false;
        };
        node.idle_since = Some(now);
        if node.children.is_empty() {
            self.leaves.insert((now, page));
        }
        self.idle_count += 1;
        true
    }

    /// Notes that a sequence took hold of `page`, which nobody held.
    pub(super) fn wake(&mut self, page: u32) {
        if let Some(since) = self.node_mut(page).and_then(|node| node.idle_since.take()) {
            self.leaves.remove(&(since, page));
            self.idle_count -= 1;
        }
    }

    /// Takes the idle leaf that was let go first out of the tree.
    pub(super) fn evict(&mut self) -> Option<u32> {
        let (_, page) = self.leaves.pop_first()?;
        let node = self.nodes.get_mut(page as usize)?.take()?;
        self.idle_count -= 1;
        match node.parent {
            None => {
                self.roots.remove(&node.tokens);
            }
            Some(above) => {
                if let Some(parent) = self.node_mut(above) {
                    parent.children.remove(&node.tokens);
                    if let (Some(since), true) = (parent.idle_since, parent.children.is_empty()) {
                        self.leaves.insert((since, above));
                    }
                }
            }
        }
        Some(page)
    }
}

#[cfg(test)]
mod tests {
    use super::Prefixes;

    #[test]
    fn a_page_is_found_below_its_own_prefix_only() {
        let mut prefixes = Prefixes::new(4);
        prefixes.insert(0, None, &[1, 2]);
        prefixes.insert(1, None, &[3, 4]);
        prefixes.insert(2, Some(0), &[5, 6]);
        prefixes.insert(3, Some(1), &[5, 6]);
        assert_eq!(prefixes.find(None, &[1, 2]), Some(0));
        assert_eq!(prefixes.find(Some(0), &[5, 6]), Some(2));
        assert_eq!(prefixes.find(Some(1), &[5, 6]), Some(3));
        assert_eq!(prefixes.find(None, &[5, 6]), None);
        assert_eq!(prefixes.find(Some(2), &[5, 6]), None);
    }

    #[test]
    fn what_rested_longest_goes_first_and_never_before_what_is_below_it() {
        let mut prefixes = Prefixes::new(4);
        prefixes.insert(0, None, &[1]);
        prefixes.insert(1, Some(0), &[2]);
        prefixes.insert(2, Some(0), &[3]);
        prefixes.insert(3, None, &[4]);
        assert_eq!(prefixes.evict(), None, "all are held");
        for (page, now) in [(1, 1), (0, 1), (3, 2), (2, 3)] {
            assert!(prefixes.rest(page, now));
        }
        assert_eq!(prefixes.idle_count(), 4);
        prefixes.wake(2);
        prefixes.wake(0);
        assert_eq!(prefixes.evict(), Some(1));
        assert_eq!(prefixes.find(Some(0), &[2]), None);
        assert_eq!(prefixes.evict(), Some(3));
        assert_eq!(prefixes.evict(), None);
        prefixes.rest(2, 4);
        prefixes.rest(0, 4);
        assert_eq!(prefixes.evict(), Some(2));
        assert_eq!(prefixes.evict(), Some(0));
        assert_eq!(prefixes.idle_count(), 0);
        assert!(!prefixes.rest(0, 5), "it is no longer in the tree");
    }
}
