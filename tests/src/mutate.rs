//! GGUF files with something wrong in them: changes that know where the fields of a file are.
//!
//! A change is made of a seed and nothing else, so that a case is named by its number. Most changes leave most of
//! the file sound, since what is wrong at the first byte says little about what comes after it.

/// What a field of the file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A count or a length.
    Length,
    /// A metadata value, or an element of an array of them.
    Value,
    /// The size of a tensor's dimension, or their number.
    Shape,
    /// Where a tensor's data is.
    Place,
    /// The number of a type.
    Type,
    /// Text.
    Text,
    /// A whole metadata entry or tensor entry.
    Entry,
}

#[derive(Clone, Copy, Debug)]
struct Field {
    start: usize,
    end: usize,
    kind: Kind,
}

/// A sound file and where its fields are.
#[derive(Clone, Debug)]
pub struct Sound {
    bytes: Vec<u8>,
    fields: Vec<Field>,
    /// Where the tensors' data begins.
    data: usize,
}

/// A number that repeats for its seed.
#[derive(Clone, Debug)]
pub struct Draw(u64);

impl Draw {
    /// Numbers of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Draw {
        Draw(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The next one: SplitMix64.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 if that is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        if bound == 0 {
            return 0;
        }
        (self.number() % bound as u64) as usize
    }
}

/// Walks a file that is known to be sound.
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    fields: Vec<Field>,
}

impl Walk<'_> {
    fn field(&mut self, size: usize, kind: Kind) -> u64 {
        let mut number = [0; 8];
        let shown = size.min(8);
        number[..shown].copy_from_slice(&self.bytes[self.at..self.at + shown]);
        if size > 0 {
            self.fields.push(Field {
                start: self.at,
                end: self.at + size,
                kind,
            });
        }
        self.at += size;
        u64::from_le_bytes(number)
    }

    fn text(&mut self) {
        let length = self.field(8, Kind::Length) as usize;
        self.field(length, Kind::Text);
    }

    fn value(&mut self, kind: u64) {
        match kind {
            8 => self.text(),
            9 => {
                let element = self.field(4, Kind::Type);
                let count = self.field(8, Kind::Length);
                for index in 0..count {
                    // Of a long array of numbers a few elements are enough.
                    if element == 8 || index < 8 {
                        self.value(element);
                    } else {
                        self.at += size_of_type(element);
                    }
                }
            }
            other => {
                self.field(size_of_type(other), Kind::Value);
            }
        }
    }

    fn entry(&mut self, start: usize) {
        self.fields.push(Field {
            start,
            end: self.at,
            kind: Kind::Entry,
        });
    }
}

fn size_of_type(kind: u64) -> usize {
    match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        _ => 8,
    }
}

impl Sound {
    /// Finds the fields of a sound file.
    ///
    /// # Panics
    /// If it is not sound.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Sound {
        let mut walk = Walk {
            bytes: &bytes,
            at: 0,
            fields: Vec::new(),
        };
        walk.field(4, Kind::Length);
        walk.field(4, Kind::Length);
        let tensors = walk.field(8, Kind::Length);
        let pairs = walk.field(8, Kind::Length);
        for _ in 0..pairs {
            let start = walk.at;
            walk.text();
            let kind = walk.field(4, Kind::Type);
            walk.value(kind);
            walk.entry(start);
        }
        for _ in 0..tensors {
            let start = walk.at;
            walk.text();
            let dims = walk.field(4, Kind::Shape);
            for _ in 0..dims {
                walk.field(8, Kind::Shape);
            }
            walk.field(4, Kind::Type);
            walk.field(8, Kind::Place);
            walk.entry(start);
        }
        let (data, fields) = (walk.at, walk.fields);
        Sound {
            bytes,
            fields,
            data,
        }
    }

    /// The file as it is.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The file with up to four changes, pieces of which may come from `other`.
    #[must_use]
    pub fn changed(&self, other: &Sound, draw: &mut Draw) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        // Changes of length move what follows; later changes then hit other fields, which is as good.
        for _ in 0..[1, 1, 1, 1, 2, 2, 3, 5][draw.below(8)] {
            self.change(&mut bytes, other, draw);
        }
        bytes
    }

    fn pick(&self, draw: &mut Draw, kind: Kind) -> Field {
        // By kind, else texts would take nearly all: vocabularies are long. A file has each kind.
        let mut at = draw.below(self.fields.len());
        while self.fields[at].kind != kind {
            at = (at + 1) % self.fields.len();
        }
        self.fields[at]
    }

    fn change(&self, bytes: &mut Vec<u8>, other: &Sound, draw: &mut Draw) {
        match draw.below(20) {
            0..=6 => {
                let kind = match draw.below(10) {
                    0..=4 => Kind::Value,
                    5 | 6 => Kind::Shape,
                    7 => Kind::Type,
                    8 => Kind::Place,
                    _ => Kind::Length,
                };
                let field = self.pick(draw, kind);
                let number = self.number(field, draw).to_le_bytes();
                if let Some(place) = bytes.get_mut(field.start..field.end) {
                    let size = place.len().min(8);
                    place[..size].copy_from_slice(&number[..size]);
                }
            }
            7 => {
                let field = self.pick(draw, Kind::Text);
                let at = field.start + draw.below(field.end - field.start);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = draw.number() as u8;
                }
            }
            8 => {
                // The text of another field of the same length, so that the file stays readable.
                let field = self.pick(draw, Kind::Text);
                let length = field.end - field.start;
                let others: Vec<&Field> = other
                    .fields
                    .iter()
                    .filter(|other| other.kind == Kind::Text && other.end - other.start == length)
                    .collect();
                if let Some(from) = others.get(draw.below(others.len()))
                    && let Some(place) = bytes.get_mut(field.start..field.end)
                {
                    place.copy_from_slice(&other.bytes[from.start..from.end]);
                }
            }
            9 | 10 => {
                let kind = [Kind::Value, Kind::Shape, Kind::Place][draw.below(3)];
                let (one, two) = (self.pick(draw, kind), self.pick(draw, kind));
                for index in 0..(one.end - one.start).min(two.end - two.start) {
                    if one.start.max(two.start) + index < bytes.len() {
                        bytes.swap(one.start + index, two.start + index);
                    }
                }
            }
            11 | 12 => {
                // An entry in the place of another, of this file or the other.
                let (to, from) = (self.pick(draw, Kind::Entry), other.pick(draw, Kind::Entry));
                if to.end <= bytes.len() {
                    bytes.splice(
                        to.start..to.end,
                        other.bytes[from.start..from.end].iter().copied(),
                    );
                }
            }
            13 => {
                let field = self.pick(draw, Kind::Entry);
                if field.end <= bytes.len() {
                    bytes.drain(field.start..field.end);
                    recount(bytes, field.start < self.tensors_start(), -1);
                }
            }
            14 => {
                let field = self.pick(draw, Kind::Entry);
                if field.end <= bytes.len() {
                    let again = self.bytes[field.start..field.end].to_vec();
                    bytes.splice(field.end..field.end, again);
                    recount(bytes, field.start < self.tensors_start(), 1);
                }
            }
            15 => {
                // A text and its length grow together.
                let field = self.pick(draw, Kind::Text);
                let more = 1 + draw.below(300);
                if field.end <= bytes.len() && field.start >= 8 {
                    let text: Vec<u8> = self.bytes[field.start..field.end]
                        .iter()
                        .copied()
                        .cycle()
                        .take(more)
                        .collect();
                    bytes.splice(field.end..field.end, text);
                    let length = (field.end - field.start + more) as u64;
                    bytes[field.start - 8..field.start].copy_from_slice(&length.to_le_bytes());
                }
            }
            16 => {
                let end = if draw.below(2) == 0 {
                    let field = draw.below(self.fields.len());
                    self.fields[field].end
                } else {
                    draw.below(bytes.len())
                };
                bytes.truncate(end.max(1));
            }
            17 => {
                // Anything over anything.
                let length = 1 + draw.below(64);
                let (from, to) = (draw.below(other.bytes.len()), draw.below(bytes.len()));
                let from = &other.bytes[from..(from + length).min(other.bytes.len())];
                let to_end = (to + from.len()).min(bytes.len());
                bytes[to..to_end].copy_from_slice(&from[..to_end - to]);
            }
            18 => {
                // Weights: infinite scales and what else there is.
                let at = self.data + draw.below(bytes.len().saturating_sub(self.data));
                for byte in bytes.iter_mut().skip(at).take(1 + draw.below(512)) {
                    *byte = match draw.below(3) {
                        0 => 0xff,
                        1 => 0x7c,
                        _ => draw.number() as u8,
                    };
                }
            }
            _ => {
                let at = draw.below(bytes.len());
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << draw.below(8);
                }
            }
        }
    }

    fn tensors_start(&self) -> usize {
        // Entries are in order, and those of tensors come last.
        let tensors = u64::from_le_bytes(self.bytes[8..16].try_into().unwrap_or_default()) as usize;
        let mut entries = self.fields.iter().filter(|field| field.kind == Kind::Entry);
        let pairs = entries.clone().count() - tensors;
        entries.nth(pairs).map_or(self.data, |field| field.start)
    }

    /// A number that is likely to be handled badly in place of one field's.
    fn number(&self, field: Field, draw: &mut Draw) -> u64 {
        let mut now = [0; 8];
        let size = (field.end - field.start).min(8);
        now[..size].copy_from_slice(&self.bytes[field.start..field.start + size]);
        let now = u64::from_le_bytes(now);
        match draw.below(16) {
            0 => 0,
            1 => 1,
            2 => u64::MAX,
            3 => now.wrapping_add(1),
            4 => now.wrapping_sub(1),
            5 => now.wrapping_mul(2),
            6 => now / 2,
            7 => 1 << draw.below(64),
            8 => (1_u64 << draw.below(64)).wrapping_sub(1),
            9 => now.wrapping_add(1 << draw.below(64)),
            10 => self.bytes.len() as u64,
            11 => u64::from(f32::NAN.to_bits()),
            12 => u64::from(
                [f32::INFINITY, -1.0, 0.0, 1e30, f32::MIN_POSITIVE][draw.below(5)].to_bits(),
            ),
            13 => draw.below(32) as u64,
            14 => draw.below(1 << 20) as u64,
            _ => draw.number(),
        }
    }
}

fn recount(bytes: &mut [u8], metadata: bool, by: i64) {
    let at = if metadata { 16 } else { 8 };
    if let Some(count) = bytes.get_mut(at..at + 8) {
        let now = u64::from_le_bytes(count.try_into().unwrap_or_default());
        count.copy_from_slice(&now.wrapping_add_signed(by).to_le_bytes());
    }
}
