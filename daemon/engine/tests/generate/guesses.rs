//! Guesses, right and wrong: they save passes and change nothing else.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::{Arc, Mutex, OnceLock};

use andon_engine::Executor;
use andon_engine::generate::{FinishReason, Forward, GenerationRequest, Generator};
use andon_engine::grammar::{Constraint, Grammar};
use andon_engine::sample::SamplingOptions;
use andon_engine::speculate::{Corpus, Drafter, PassCosts, Sources, Wanted};
use proptest::prelude::*;

use crate::scripted::{
    A, Answer, Answers, B, C, END, FIRST_HALF, PAGE, SECOND_HALF, Script, Scripted, VOCABULARY,
    alone, certain, chaotic, cycle, finish, grammar, reason, request, scripted, scripted_for,
    short, step_unless,
};

/// What does not depend on guesses: text, tokens, log probabilities and the end.
fn said_of(answer: &Answer) -> (&str, &[u32], Vec<u32>, &FinishReason, [usize; 2]) {
    let (reason, usage) = answer.end.as_ref().expect("an end");
    (
        &answer.text,
        &answer.ids,
        answer.logprobs.iter().map(|bits| bits.to_bits()).collect(),
        reason,
        [usage.prompt_tokens, usage.completion_tokens],
    )
}

/// A generator that tries whatever is guessed.
fn eager(script: Script, pages: usize) -> Generator<Scripted> {
    let mut generator = scripted(script, pages);
    generator.set_costs(PassCosts::of_columns(&[1.0; 8]));
    generator
}

#[test]
fn right_guesses_save_passes_and_are_counted() {
    let asked = request(&[A], 40);
    let mut generator = eager(cycle, 64);
    let sources = Sources {
        own: true,
        ..Sources::default()
    };
    let id = generator.start(GenerationRequest {
        sources,
        ..asked.clone()
    });
    let answers = finish(&mut generator);
    let answer = &answers[&id.expect("a start")];
    let plain = alone(cycle, asked);
    assert_eq!(said_of(answer), said_of(&plain));
    let (_, usage) = answer.end.as_ref().expect("an end");
    // The text repeats itself from the seventh token on; before, one token comes back without those around it.
    assert!(usage.accepted_tokens >= 20, "{usage:?}");
    assert!(usage.guessed_tokens - usage.accepted_tokens <= 1);
    let passes = generator.executor().passes.get();
    assert_eq!(passes, 40 - usage.accepted_tokens);
    assert_eq!(generator.executor().kv_tokens_free(), 64 * PAGE);
}

#[test]
fn a_pass_over_guesses_is_given_up_once_for_whoever_interrupts() {
    let asked = request(&[A], 40);
    let mut generator = eager(cycle, 64);
    let sources = Sources {
        own: true,
        ..Sources::default()
    };
    let id = generator.start(GenerationRequest {
        sources,
        ..asked.clone()
    });
    let mut answers = Answers::new();
    let mut given_up = 0;
    while generator.active() > 0 {
        step_unless(&mut generator, &mut answers, true);
        given_up += usize::from(generator.goes_through());
    }
    let answer = &answers[&id.expect("a start")];
    assert_eq!(said_of(answer), said_of(&alone(cycle, asked)));
    let (_, usage) = answer.end.as_ref().expect("an end");
    assert!(usage.accepted_tokens >= 20, "{usage:?}");
    // One was the prompt's.
    assert!(given_up > 2, "{given_up}");
    let passes = generator.executor().passes.get();
    assert_eq!(passes, 40 - usage.accepted_tokens + given_up);
    assert_eq!(generator.executor().kv_tokens_free(), 64 * PAGE);
}

#[test]
fn guesses_take_no_page_that_another_needs() {
    let sources = Sources {
        own: true,
        ..Sources::default()
    };
    let limited = GenerationRequest {
        sources,
        ..request(&[A], 31)
    };
    let unlimited = GenerationRequest {
        tokens_max: None,
        ..limited.clone()
    };
    // Room for both to the end, and not one page more.
    let mut generator = eager(cycle, 16);
    let ids = [(); 2].map(|()| generator.start(limited.clone()).expect("a start"));
    let answers = finish(&mut generator);
    for id in ids {
        assert_eq!(reason(&answers[&id]), &FinishReason::Length);
        assert_eq!(answers[&id].ids.len(), 31);
    }
    // Too little room for an answer without a limit: it comes as far as it does without guesses.
    let mut plain = scripted(cycle, 5);
    let plain_id = plain.start(GenerationRequest {
        sources: Sources::default(),
        ..unlimited.clone()
    });
    let expected = finish(&mut plain);
    let mut generator = eager(cycle, 5);
    let id = generator.start(unlimited).expect("a start");
    let answers = finish(&mut generator);
    assert_eq!(
        said_of(&answers[&id]),
        said_of(&expected[&plain_id.expect("a start")])
    );
    assert_eq!(answers[&id].ids.len(), 5 * PAGE);
    let (_, usage) = answers[&id].end.as_ref().expect("an end");
    assert!(usage.accepted_tokens > 0, "guesses were tried");
}

/// A drafter that says what comes to its mind, tokens that do not exist and more than it was asked for included.
#[derive(Debug)]
struct Whimsical {
    said: Vec<u32>,
    /// What it lacks of every text.
    unread: usize,
    /// Whether it asks what may come.
    obeys: bool,
}

impl Drafter for Whimsical {
    fn missing(&self, _: u64, text: &[u32]) -> Option<usize> {
        (!text.len().is_multiple_of(7)).then_some(self.unread)
    }
    fn read(&mut self, _: Option<&mut Executor>, _: u64, _: &[u32]) -> usize {
        self.unread = self.unread.saturating_sub(10);
        self.said.len().min(10)
    }
    fn draft(&mut self, _: Option<&mut Executor>, wanted: &mut [Wanted<'_>]) -> usize {
        for wanted in wanted.iter_mut() {
            let skipped = wanted.text.len() % self.said.len().max(1);
            let said = self.said.iter().skip(skipped);
            let unknown = VOCABULARY as u32 + 3;
            let said = said.map(|&token| if token == END { unknown } else { token });
            let Some(limits) = wanted.limits.filter(|_| self.obeys) else {
                wanted.guesses.extend(said);
                continue;
            };
            for token in said {
                let mut choose = |words: Option<&[u32]>| match words {
                    Some([word, ..]) if token % 2 == 0 => Some(word.trailing_zeros()),
                    _ => Some(token),
                };
                match limits.guess(&mut choose) {
                    Some(guess) => wanted.guesses.push(guess),
                    None => break,
                }
            }
        }
        self.said.len()
    }
    fn forget(&mut self, _: u64) {}
}

/// `c` and then `a`, or `b` and `c` without end in so many ways that following it is given up.
fn endless() -> Constraint {
    let ways: Vec<String> = (0..300).map(|way| format!("w{way}")).collect();
    let rules = ways.iter().map(|way| format!("{way}: \"c\" {way}\n"));
    let rules: String = rules.collect();
    let all = ways.join(" | ");
    Constraint::Lark(format!(
        "start: \"c\" (\"a\" | \"b\" all)\nall: {all}\n{rules}"
    ))
}

#[test]
fn guesses_that_cannot_be_followed_break_no_answer() {
    let grammar = grammar(&endless());
    for (chosen, end) in [(A, true), (B, false)] {
        let script: Script = match chosen {
            A => |_| certain(A),
            _ => |_| certain(B),
        };
        let asked = GenerationRequest {
            constraint: Some(Arc::clone(&grammar)),
            ..request(&[A], 20)
        };
        let plain = alone(script, asked.clone());
        assert_eq!(reason(&plain) == &FinishReason::Stop, end, "{plain:?}");
        assert_eq!(plain.text, if end { "ca" } else { "c" });
        for obeys in [false, true] {
            let mut generator = eager(script, 64);
            let said = vec![B; 9];
            let drafter = Whimsical {
                said,
                unread: 0,
                obeys,
            };
            generator.set_drafter(Box::new(drafter), 0.0);
            let sources = Sources {
                model: true,
                ..Sources::default()
            };
            let id = generator.start(GenerationRequest {
                sources,
                ..asked.clone()
            });
            let answers = finish(&mut generator);
            assert_eq!(said_of(&answers[&id.expect("a start")]), said_of(&plain));
        }
    }
}

#[test]
fn guesses_that_do_not_pay_are_tried_now_and_then() {
    let mut generator = scripted_for(2000, cycle, 600);
    // A token more costs as much as a pass.
    let costs = PassCosts::of_columns(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    generator.set_costs(costs.held());
    let sources = Sources {
        own: true,
        ..Sources::default()
    };
    let id = generator.start(GenerationRequest {
        sources,
        ..request(&[A], 1050)
    });
    let answers = finish(&mut generator);
    let (_, usage) = answers[&id.expect("a start")].end.as_ref().expect("an end");
    assert!((9..=10).contains(&usage.guessed_tokens), "{usage:?}");
    assert_eq!(usage.accepted_tokens, usage.guessed_tokens);
}

/// What a [`Fickle`] one did.
#[derive(Debug, Default)]
struct Work {
    /// Passes and tokens read before it knew better.
    passes: usize,
    read: usize,
    /// Lengths of the texts that it guessed for.
    lengths: Vec<usize>,
}

/// A drafter that is wrong about a text up to a length, and right about what `cycle` says behind it.
#[derive(Debug)]
struct Fickle {
    right_from: usize,
    known: BTreeMap<u64, usize>,
    work: Arc<Mutex<Work>>,
}

impl Fickle {
    fn note(&self, length: usize, passes: usize, read: usize) {
        let mut work = self.work.lock().expect("nobody failed");
        if length < self.right_from {
            work.passes += passes;
            work.read += read;
        }
    }
}

impl Drafter for Fickle {
    fn missing(&self, id: u64, text: &[u32]) -> Option<usize> {
        Some(
            text.len()
                - self
                    .known
                    .get(&id)
                    .map_or(0, |&known| known.min(text.len() - 1)),
        )
    }
    fn read(&mut self, _: Option<&mut Executor>, id: u64, text: &[u32]) -> usize {
        let count = self
            .missing(id, text)
            .map_or(0, |missing| (missing - 1).min(128));
        *self.known.entry(id).or_default() += count;
        self.note(text.len(), 0, count);
        count
    }
    fn draft(&mut self, _: Option<&mut Executor>, wanted: &mut [Wanted<'_>]) -> usize {
        let mut passes = 0;
        for wanted in wanted.iter_mut() {
            let length = wanted.before + wanted.text.len();
            let missing = self.missing(wanted.id, wanted.text).unwrap_or(0);
            self.known.insert(wanted.id, wanted.text.len());
            for at in length..length + wanted.count {
                let right = [A, B, C, FIRST_HALF, SECOND_HALF];
                let wrong = usize::from(length < self.right_from);
                wanted.guesses.push(right[(at - 1 + wrong) % 5]);
            }
            passes = passes.max(wanted.count);
            self.note(length, wanted.count, missing);
            self.work
                .lock()
                .expect("nobody failed")
                .lengths
                .push(length);
        }
        passes
    }
    fn forget(&mut self, id: u64) {
        self.known.remove(&id);
    }
}

#[test]
fn a_drafter_that_was_wrong_is_asked_again_within_an_answer() {
    let mut generator = scripted_for(2100, cycle, 600);
    let costs = PassCosts::of_columns(&[1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7]);
    generator.set_costs(costs.held());
    let work = Arc::new(Mutex::new(Work::default()));
    let drafter = |right_from| Fickle {
        right_from,
        known: BTreeMap::new(),
        work: Arc::clone(&work),
    };
    generator.set_drafter(Box::new(drafter(400)), 0.2);
    let sources = Sources {
        model: true,
        ..Sources::default()
    };
    let asked = GenerationRequest {
        sources,
        ..request(&[A], 2000)
    };
    let id = generator.start(asked.clone()).expect("a start");
    let answers = finish(&mut generator);
    let plain = {
        let mut generator = scripted_for(2100, cycle, 600);
        let id = generator.start(GenerationRequest {
            sources: Sources::default(),
            ..asked.clone()
        });
        finish(&mut generator)
            .remove(&id.expect("a start"))
            .expect("an answer")
    };
    assert_eq!(said_of(&answers[&id]), said_of(&plain));
    let (_, usage) = answers[&id].end.as_ref().expect("an end");
    assert!(usage.accepted_tokens > 400, "{usage:?}");
    let cost = |work: &Work| 0.2 * work.passes as f32 + 0.2 / 8.0 * work.read as f32;
    {
        let work = work.lock().expect("nobody failed");
        // What it takes to see that it is wrong, and a hundredth.
        assert!(cost(&work) < 2.0 + 4.0, "{work:?}");
        assert!(
            work.lengths.iter().any(|length| (50..400).contains(length)),
            "{work:?}"
        );
    }
    // One that stays wrong is asked less and less.
    *work.lock().expect("nobody failed") = Work::default();
    let mut generator = scripted_for(2100, cycle, 600);
    generator.set_costs(PassCosts::of_columns(&[1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7]).held());
    generator.set_drafter(Box::new(drafter(usize::MAX)), 0.2);
    generator.start(asked).expect("a start");
    finish(&mut generator);
    let work = work.lock().expect("nobody failed");
    assert!(cost(&work) < 2.0 + 10.0, "{work:?}");
    assert!(work.lengths.iter().any(|&length| length > 800), "{work:?}");
}

/// What answers are held to, if anything.
fn held(index: usize) -> Option<Arc<Grammar>> {
    static GRAMMARS: OnceLock<Vec<Arc<Grammar>>> = OnceLock::new();
    let grammars = GRAMMARS.get_or_init(|| {
        let regexes = [
            "(ab|ca)*c{0,9}é?",
            "[abc]{5,40}",
            "(a|bc|é)+",
            "(abcé){2}(a|b)+c",
        ];
        let regexes = regexes.map(|regex| Constraint::Regex(regex.to_owned()));
        let gbnf = "root ::= (\"a\" root \"b\" | [bc] \"é\"? )+";
        let gbnf = Constraint::Gbnf(gbnf.to_owned());
        let all = regexes.iter().chain([&gbnf]);
        all.map(grammar).chain([grammar(&endless())]).collect()
    });
    grammars.get(index).map(Arc::clone)
}

/// Cases of the property: few enough for each run, or as many as `PROPTEST_CASES` says.
fn cases() -> u32 {
    let asked = std::env::var("PROPTEST_CASES").ok();
    asked.and_then(|count| count.parse().ok()).unwrap_or(1000)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Guesses that are right, wrong, or right up to somewhere, with every option that looks back at the text.
    #[test]
    fn guesses_change_nothing(
        prompt in prop::collection::vec(0_u32..5, 1..12),
        tokens_max in 0_usize..60,
        seed in 0_u64..100,
        temperature in prop::sample::select(vec![0.0_f32, 0.7, 1.5]),
        penalties in prop::sample::select(vec![(1.0_f32, 0.0_f32), (1.3, 0.0), (1.0, 0.6), (1.2, -0.4)]),
        top_k in 0_u32..4,
        stop in prop::sample::select(vec![vec![], vec!["ca"], vec!["é", "bbb"]]),
        logprobs in prop::option::of(0_u8..3),
        ignore_end in any::<bool>(),
        script in prop::sample::select(vec![chaotic as Script, cycle, short]),
        (own, held_to) in (any::<bool>(), 0_usize..12),
        wrong in prop::collection::vec((0_usize..60, 0_u32..6), 0..6),
        noise in prop::collection::vec(0_u32..6, 0..40),
        neighbours in 0_u32..3,
        (drafter, obeys) in (0_usize..4, any::<bool>()),
    ) {
        let (repeat_penalty, frequency_penalty) = penalties;
        let asked = GenerationRequest {
            sampling: SamplingOptions {
                temperature,
                top_k,
                seed,
                repeat_penalty,
                frequency_penalty,
                ..SamplingOptions::default()
            },
            stop: stop.into_iter().map(str::to_owned).collect(),
            logprobs,
            ignore_end,
            constraint: held(held_to),
            ..request(&prompt, tokens_max)
        };
        let count = NonZero::new(1 + neighbours).expect("at least one");
        let mut plain = scripted(script, 64);
        let expected_ids: Vec<_> = plain.start_group(asked.clone(), count).expect("a start").collect();
        let expected = finish(&mut plain);
        let corpus = Arc::new(Corpus::new(500));
        corpus.add(&prompt, &noise);
        for answer in expected.values() {
            let mut tokens = answer.ids.clone();
            for &(at, token) in &wrong {
                if let Some(place) = tokens.get_mut(at) {
                    *place = token;
                }
            }
            corpus.add(&prompt, &tokens);
        }
        let mut generator = eager(script, 64);
        if drafter > 0 {
            let said = noise.clone();
            let unread = drafter * 40 - 40;
            generator.set_drafter(Box::new(Whimsical { said, unread, obeys }), 0.0);
        }
        let sources = Sources { own, corpus: Some(corpus), learns: false, model: drafter > 0 };
        let ids: Vec<_> = generator
            .start_group(GenerationRequest { sources, ..asked }, count)
            .expect("a start")
            .collect();
        let answers = finish(&mut generator);
        for (id, expected_id) in ids.iter().zip(&expected_ids) {
            prop_assert_eq!(said_of(&answers[id]), said_of(&expected[expected_id]));
        }
        prop_assert!(generator.executor().passes.get() <= plain.executor().passes.get());
        prop_assert_eq!(generator.executor().kv_tokens_free(), 64 * PAGE);
    }
}
