//! English words that say what kind of thinking a text asks for, and the table in which they are found.
//!
//! A word stands here for what it asks of whoever answers, whatever the subject: that a cause be found, that things be
//! weighed, that something be copied out. Words of a trade are not here; what they are worth is learned.
//!
//! Invariant: the table has every word of [`CUES`] under its hash, and is at most half full; both are checked while
//! compiling.

use super::features::hash_word;

/// Kinds of cues; each is a bit of what [`cues`] gives, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Cue {
    /// Something has to be thought out: design, derive, plan, rank, forecast.
    Work,
    /// A cause or a reason is asked for.
    Cause,
    /// Something is looked up, copied out or put another way.
    Lookup,
    /// The answer is said to be short or to have a form.
    Bounded,
    /// A condition.
    Condition,
    /// A comparison.
    Comparison,
    /// An order of steps.
    Step,
    /// An amount to be worked out.
    Quantity,
    /// A negation or an exception.
    Negation,
    /// Program code.
    Code,
    /// A fact is asked for: who, what, where, which.
    Fact,
    /// What may or should be.
    Modal,
    /// Mathematics beyond arithmetic.
    Mathematics,
    /// Time to come, or at length.
    Horizon,
    /// A thing is assumed or made up.
    Story,
    /// English that says nothing of the kind: articles, prepositions, pronouns.
    Function,
}

/// How many kinds there are.
pub(super) const KINDS: usize = 16;

use Cue::{
    Bounded, Cause, Code, Comparison, Condition, Fact, Function, Horizon, Lookup, Mathematics,
    Modal, Negation, Quantity, Step, Story, Work,
};

/// Words of each kind, lower case, apart by one space. A pair joined by `_` is two words in a row.
const CUES: &[(Cue, &str)] = &[
    (
        Work,
        "design derive diagnose diagnosis plan rank prioritise prioritize optimise optimize evaluate assess analyse \
         analyze analysis propose recommend recommendation justify argue defend critique review develop devise invent \
         investigate forecast predict prediction estimate reconstruct separate distinguish discriminate weigh decide \
         deduce infer prove proof solve calculate compute determine build construct compose strategy tradeoff \
         trade_off fault_tree experiment hypothesis hypotheses scenario simulate model schedule discuss elaborate \
         debug refactor anticipate quantify reason_about think_through work_out draw_up come_up",
    ),
    (
        Cause,
        "why cause causes caused causing root_cause root_causes reason reasons because due lead leads led explain \
         explains explanation mechanism contribute contributes contributing responsible consequence consequences \
         effect effects result results origin underlying behind evidence symptom symptoms",
    ),
    (
        Lookup,
        "list extract rewrite translate classify convert name define summarise summarize summary rate label copy \
         identify find show give tell state mark mention look_up parse return retrieve get fetch display sort tag \
         paraphrase spell correct fix shorten reformat normalise normalize check read fill expand count mean means \
         meaning stand stands called known",
    ),
    (
        Bounded,
        "sentence sentences word words bullet bullets json keys key fields field one_word at_most short brief briefly \
         concise only yes_or or_no single line lines paragraph points maximum exactly format table_with csv plain \
         nothing_added no_explanation",
    ),
    (
        Condition,
        "if unless whenever otherwise assuming assume assumes suppose supposing provided given in_case whether \
         depending depends except_when as_long even_though although though however while until once",
    ),
    (
        Comparison,
        "than versus vs compare compared comparison contrast difference differences different differ better best \
         worse worst more most less least fewer greater greatest higher highest lower lowest larger largest smaller \
         smallest faster slower cheaper cheapest longer shorter older younger similar similarities same between both \
         either relative rather alternatives alternative pros_and advantages disadvantages",
    ),
    (
        Step,
        "first second third then next finally step steps procedure sequence order stage phase before after \
         afterwards following subsequently last begin start process repeat followed",
    ),
    (
        Quantity,
        "how_many how_much total totals sum percent percentage average mean_of ratio rate_of per each every twice half \
         double triple times quarter third_of remaining left altogether combined cost costs price dollars cents \
         dozen add subtract multiply divide multiplied divided product profit number_of amount_of distance speed \
         hours minutes days weeks miles",
    ),
    (
        Negation,
        "not no never none neither nor without except excluding cannot can't don't doesn't isn't aren't won't \
         wouldn't false incorrect untrue nobody nothing least_likely unlikely",
    ),
    (
        Code,
        "function code program python implement implementation algorithm class method variable variables array \
         string loop def import print sql query script regex structured_text plc ladder function_block bool \
         compile java javascript html returns input_variables output_variables parameter parameters int float",
    ),
    (
        Fact,
        "what who whom whose where when which whats who's what's name_the capital inventor author year",
    ),
    (
        Modal,
        "could would should might may must can will shall likely probably possible possibly potential potentially \
         probable need needs needed ought allowed required",
    ),
    (
        Mathematics,
        "integer integers polynomial equation equations triangle circle angle angles perpendicular matrix vector \
         probability derivative integral sqrt frac root roots prime modulo remainder divisor divisors factor \
         factorial coordinates slope radius diameter area volume perimeter hypotenuse logarithm sequence_of \
         permutation permutations theorem finite infinite real_numbers positive negative expression simplify \
         evaluate_the function_f graph axis parabola digits group ring field_of isomorphic subgroup homomorphism",
    ),
    (
        Horizon,
        "tomorrow future will_be next_week next_month week month months year years long_term quarter_of trend trends \
         history over_time lifetime remaining_useful season horizon weekly monthly daily",
    ),
    (
        Story,
        "imagine pretend story essay poem letter email blog article speech dialogue character act_as role persuasive \
         write draft describe creative narrative review_of post song lyrics joke",
    ),
    (
        Function,
        "a an the of in on at to from by for with and or but as is are was were be been being has have had do does did \
         this that these those it its he she they them his her their our your you we i my me us there here into onto \
         up down out off over under about through during again further so such too very just also any some all many \
         much few other another own please how",
    ),
];

const SLOTS: usize = 2048;

struct Table {
    hashes: [u32; SLOTS],
    kinds: [u16; SLOTS],
}

const TABLE: Table = build();

/// Fills the table from [`CUES`]. A word may be of several kinds.
const fn build() -> Table {
    let mut table = Table {
        hashes: [0; SLOTS],
        kinds: [0; SLOTS],
    };
    let mut used = 0;
    let mut kind = 0;
    while kind < CUES.len() {
        let bit = 1 << CUES[kind].0 as u16;
        let bytes = CUES[kind].1.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            let mut end = at;
            while end < bytes.len() && bytes[end] != b' ' {
                end += 1;
            }
            if end > at {
                let hash = hash_entry(bytes, at, end);
                assert!(hash != 0, "a word has the hash of an empty slot");
                let mut slot = hash as usize % SLOTS;
                while table.hashes[slot] != 0 && table.hashes[slot] != hash {
                    slot = (slot + 1) % SLOTS;
                }
                if table.hashes[slot] == 0 {
                    used += 1;
                }
                table.hashes[slot] = hash;
                table.kinds[slot] |= bit;
            }
            at = end + 1;
        }
        kind += 1;
    }
    assert!(used * 2 < SLOTS, "the table is too full to be fast");
    table
}

/// The hash of the word, or pair of words joined by `_`, in `bytes[at..end]`.
const fn hash_entry(bytes: &[u8], at: usize, end: usize) -> u32 {
    let mut joint = at;
    while joint < end && bytes[joint] != b'_' {
        joint += 1;
    }
    let first = hash_word(bytes, at, joint);
    if joint == end {
        first
    } else {
        pair(first, hash_word(bytes, joint + 1, end))
    }
}

/// The hash of two words in a row.
pub(super) const fn pair(first: u32, second: u32) -> u32 {
    (first.rotate_left(13) ^ second).wrapping_mul(0x9E37_79B1)
}

/// The kinds of the word, or pair, with this hash, as bits by [`Cue`].
pub(super) fn cues(hash: u32) -> u16 {
    let mut slot = hash as usize % SLOTS;
    loop {
        let found = TABLE.hashes[slot];
        if found == hash {
            return TABLE.kinds[slot];
        }
        if found == 0 {
            return 0;
        }
        slot = (slot + 1) % SLOTS;
    }
}
