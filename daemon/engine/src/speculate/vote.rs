//! What comes next by the occurrences of a text's end: each votes for what followed it, and those that agree with the text
//! over more tokens have more votes. An occurrence whose vote lost says no more, for then it is of another text.
//!
//! A guess is as good as its grounds: how well the occurrences that speak for it agree with the text, and whether others
//! speak against it. That is what [`super::acceptance`] counts by.

use super::DRAFT_MAX;
use super::lookup::{Lookup, OCCURRENCES_MAX, Occurrence, SEPARATOR};

/// Agreement beyond which it has no more votes.
const WEIGHTS_MAX: usize = 16;

/// Who spoke for a guess.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Consent {
    /// The only occurrence.
    #[default]
    Alone,
    /// Two or three, and none against it.
    Few,
    /// More, and none against it.
    Many,
    /// Two thirds of the votes or more.
    Most,
    /// Fewer.
    Divided,
}

impl Consent {
    /// How many there are.
    pub(crate) const COUNT: usize = Consent::Divided as usize + 1;
}

/// What speaks for a guess.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Grounds {
    /// Over how many tokens, the guesses before it included, the text agrees with what it followed; for a model's guess,
    /// how many others are before it.
    pub(crate) agreement: usize,
    pub(crate) consent: Consent,
}

/// How a text may go on.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) tokens: Vec<u32>,
    grounds: Vec<Grounds>,
    /// The memory of a search and of its votes.
    found: Vec<Occurrence>,
    votes: Vec<Votes>,
}

/// For one token.
#[derive(Clone, Copy, Debug)]
struct Votes {
    token: u32,
    weight: u64,
    occurrences: usize,
    agreement: usize,
}

impl Draft {
    /// An empty one, with the memory that it will need.
    pub(crate) fn new() -> Draft {
        Draft {
            tokens: Vec::with_capacity(DRAFT_MAX),
            grounds: Vec::with_capacity(DRAFT_MAX),
            found: Vec::with_capacity(OCCURRENCES_MAX),
            votes: Vec::with_capacity(OCCURRENCES_MAX),
        }
    }

    /// Forgets all guesses.
    pub(crate) fn clear(&mut self) {
        self.tokens.clear();
        self.grounds.clear();
    }

    /// What speaks for guess `index`.
    pub(crate) fn grounds(&self, index: usize) -> Grounds {
        self.grounds.get(index).copied().unwrap_or(Grounds {
            agreement: index,
            consent: Consent::Alone,
        })
    }

    /// Appends at most `most` guesses by what `search` finds in `lookup`.
    pub(crate) fn vote(
        &mut self,
        lookup: &Lookup,
        most: usize,
        search: impl FnOnce(&mut Vec<Occurrence>),
    ) {
        search(&mut self.found);
        let tokens = lookup.tokens();
        for ahead in 0..most {
            let next = |occurrence: &Occurrence| {
                let token = tokens.get(occurrence.at + ahead).copied();
                token.filter(|&token| token != SEPARATOR)
            };
            self.votes.clear();
            let (mut all, mut weights) = (0, 0);
            for (age, occurrence) in self.found.iter().enumerate() {
                let Some(token) = next(occurrence) else {
                    continue;
                };
                let Occurrence { agreement, .. } = *occurrence;
                // Of equals, the latest.
                let weight = (1024 - age as u64) << agreement.min(WEIGHTS_MAX);
                (all, weights) = (all + 1, weights + weight);
                match self.votes.iter_mut().find(|votes| votes.token == token) {
                    Some(votes) => {
                        votes.weight += weight;
                        votes.occurrences += 1;
                        votes.agreement = votes.agreement.max(agreement);
                    }
                    None => self.votes.push(Votes {
                        token,
                        weight,
                        occurrences: 1,
                        agreement,
                    }),
                }
            }
            let Some(won) = self.votes.iter().max_by_key(|votes| votes.weight) else {
                break;
            };
            let consent = match won.occurrences {
                1 if all == 1 => Consent::Alone,
                2 | 3 if all == won.occurrences => Consent::Few,
                _ if all == won.occurrences => Consent::Many,
                _ if won.weight * 3 >= weights * 2 => Consent::Most,
                _ => Consent::Divided,
            };
            self.tokens.push(won.token);
            self.grounds.push(Grounds {
                agreement: won.agreement + ahead,
                consent,
            });
            let token = won.token;
            self.found
                .retain(|occurrence| next(occurrence) == Some(token));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Consent, Draft, Grounds, Lookup};

    fn own(text: &[u32], most: usize) -> Vec<(u32, usize, Consent)> {
        let mut lookup = Lookup::default();
        lookup.extend(text);
        let mut draft = Draft::new();
        draft.vote(&lookup, most, |found| lookup.find_own(found));
        let of = |(index, &token): (usize, &u32)| {
            let Grounds { agreement, consent } = draft.grounds(index);
            (token, agreement, consent)
        };
        draft.tokens.iter().enumerate().map(of).collect()
    }

    #[test]
    fn an_only_occurrence_is_followed() {
        let guesses = own(&[1, 2, 3, 4, 1, 2], 3);
        let alone = |token, agreement| (token, agreement, Consent::Alone);
        assert_eq!(guesses, [alone(3, 2), alone(4, 3), alone(1, 4)]);
        assert!(own(&[1, 2, 3], 3).is_empty());
        assert!(own(&[1, 2, 3, 4, 1, 2], 0).is_empty());
    }

    #[test]
    fn longer_agreement_has_more_votes_and_the_latest_of_equals_wins() {
        let guesses = own(&[9, 1, 2, 3, 7, 1, 2, 4, 8, 9, 1, 2], 2);
        assert_eq!(guesses[0], (3, 3, Consent::Divided), "nearly two thirds");
        assert_eq!(guesses[1], (7, 4, Consent::Alone), "the other is out");
        let guesses = own(&[1, 2, 3, 7, 1, 2, 4, 8, 1, 2], 1);
        assert_eq!(guesses, [(4, 2, Consent::Divided)]);
    }

    #[test]
    fn many_outvote_one_that_agrees_as_well() {
        let guesses = own(&[1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 4, 1, 2], 1);
        assert_eq!(guesses, [(3, 2, Consent::Most)]);
        let guesses = own(&[1, 2, 3, 8, 1, 2, 3, 1, 2], 1);
        assert_eq!(guesses, [(3, 2, Consent::Few)]);
        let guesses = own(&[5; 9], 1);
        assert_eq!(guesses, [(5, 8, Consent::Many)]);
    }
}
