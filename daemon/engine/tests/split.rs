//! Models in several files: any part opens the set, and each way in which a set can be wrong names the file.

#![forbid(unsafe_code)]

mod support;

use std::path::{Path, PathBuf};

use andon_engine::gguf::{Gguf, PartName, SplitError};
use andon_engine::{Files, LoadError};
use support::Writer;
use tempfile::TempDir;

const U16: u32 = 2;
const F32: u32 = 0;

/// A part with one tensor, named after it.
fn part(number: u16, count: u16, tensors: i32) -> Writer {
    let mut writer = Writer::new();
    if number == 0 {
        writer.str("general.name", "split").u32("x.layers", 3);
    }
    writer
        .raw(b"split.no", U16, &number.to_le_bytes())
        .raw(b"split.count", U16, &count.to_le_bytes())
        .raw(b"split.tensors.count", support::I32, &tensors.to_le_bytes())
        .tensor(&format!("t{number}"), &[4], F32, &[number as u8; 16]);
    writer
}

struct Set {
    folder: TempDir,
}

impl Set {
    /// Three sound parts.
    fn new() -> Set {
        let set = Set {
            folder: tempfile::tempdir().expect("a folder"),
        };
        for number in 0..3 {
            set.write(number, &part(number as u16, 3, 3));
        }
        set
    }

    fn path(&self, index: usize) -> PathBuf {
        let name = format!("model-{:05}-of-00003.gguf", index + 1);
        self.folder.path().join(name)
    }

    fn write(&self, index: usize, part: &Writer) {
        std::fs::write(self.path(index), part.finish()).expect("written");
    }

    /// What is wrong, and with which file.
    fn error(&self) -> (PathBuf, SplitError) {
        let files = Files::open(&self.path(1)).expect("files");
        match files.gguf() {
            Err(LoadError::Split { path, source }) => (path, source),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn any_part_opens_the_set() {
    let set = Set::new();
    for index in 0..3 {
        let files = Files::open(&set.path(index)).expect("files");
        assert_eq!(files.paths(), [set.path(0), set.path(1), set.path(2)]);
        let gguf = files.gguf().expect("a set");
        assert_eq!(gguf.str("general.name"), Ok("split"));
        assert_eq!(gguf.u32("x.layers"), Ok(3));
        for number in 0..3_u8 {
            let tensor = gguf.tensor(&format!("t{number}")).expect("a tensor");
            assert_eq!(tensor.part, usize::from(number));
            assert_eq!(gguf.data(tensor), [number; 16]);
        }
    }
}

#[test]
fn a_missing_part_is_named() {
    let set = Set::new();
    std::fs::remove_file(set.path(2)).expect("removed");
    match Files::open(&set.path(0)) {
        Err(LoadError::Open { path, source }) => {
            assert_eq!(path, set.path(2));
            assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_part_in_the_wrong_place_is_named() {
    let set = Set::new();
    set.write(2, &part(1, 3, 3));
    let error = SplitError::Number { key: 1, place: 2 };
    assert_eq!(set.error(), (set.path(2), error.clone()));
    assert_eq!(
        error.to_string(),
        "it is part 2 of its set, and part 3 by its name"
    );
}

#[test]
fn a_part_of_another_set_is_named() {
    let set = Set::new();
    set.write(1, &part(1, 4, 4));
    let error = SplitError::Count { key: 4, files: 3 };
    assert_eq!(set.error(), (set.path(1), error));

    let set = Set::new();
    let mut other = part(1, 3, 3);
    other.str("general.name", "another");
    set.write(1, &other);
    let key = "general.name".to_owned();
    assert_eq!(set.error(), (set.path(1), SplitError::Metadata { key }));

    // As long as the first part's, and of other elements.
    let lists = |first: &[i32], second: &[i32]| {
        let set = Set::new();
        for (number, list) in [first, second].into_iter().enumerate() {
            let mut other = part(number as u16, 3, 3);
            other.i32s("x.list", list);
            set.write(number, &other);
        }
        set
    };
    let (set, key) = (lists(&[1, 2], &[1, 3]), "x.list".to_owned());
    assert_eq!(set.error(), (set.path(1), SplitError::Metadata { key }));
    let same = Files::open(&lists(&[1, 2], &[1, 2]).path(0)).expect("files");
    assert!(same.gguf().is_ok());
}

#[test]
fn what_is_no_number_is_the_same_as_itself() {
    let set = Set::new();
    for number in 0..2 {
        let mut other = part(number as u16, 3, 3);
        other.raw(b"x.scale", 6, &f32::NAN.to_le_bytes());
        set.write(number, &other);
    }
    let files = Files::open(&set.path(0)).expect("files");
    assert!(files.gguf().is_ok());
}

#[test]
fn a_whole_file_in_a_set_is_named() {
    let set = Set::new();
    set.write(0, Writer::new().str("general.name", "whole"));
    assert!(matches!(
        set.error(),
        (path, SplitError::Key(_)) if path == set.path(0)
    ));
}

#[test]
fn tensors_are_there_once() {
    let set = Set::new();
    let mut again = part(2, 3, 3);
    again.tensor("t1", &[4], F32, &[1; 16]);
    set.write(2, &again);
    match set.error() {
        (path, SplitError::DuplicateTensor { name, first, .. }) => {
            assert_eq!((path, name.as_str(), first), (set.path(2), "t1", 1));
        }
        other => panic!("{other:?}"),
    }

    let set = Set::new();
    set.write(0, &part(0, 3, 4));
    let error = SplitError::TensorCount {
        claimed: 4,
        found: 3,
    };
    assert_eq!(set.error(), (set.path(0), error));
}

#[test]
fn a_part_by_itself_is_no_model() {
    let bytes = part(0, 3, 3).finish();
    let alone = Gguf::join(vec![Gguf::parse(&bytes).expect("a file")]);
    assert_eq!(
        alone.expect_err("a part").error,
        SplitError::Count { key: 3, files: 1 }
    );
    // What was split and put together again says so.
    for count in [0, 1] {
        let bytes = part(0, count, 1).finish();
        assert!(Gguf::join(vec![Gguf::parse(&bytes).expect("a file")]).is_ok());
    }
}

#[test]
fn names_of_parts_are_read() {
    let name = PartName::of(Path::new("a/b-00002-of-00003.gguf")).expect("a part");
    assert_eq!((name.index, name.count), (1, 3));
    assert_eq!(name.part(2), Path::new("a/b-00003-of-00003.gguf"));
    for other in [
        "b.gguf",
        "b-00002-of-00003.bin",
        "b-00000-of-00003.gguf",
        "b-00004-of-00003.gguf",
        "b-2-of-3.gguf",
        "b-+0002-of-00003.gguf",
        "00002-of-00003.gguf",
    ] {
        assert_eq!(PartName::of(Path::new(other)), None, "{other}");
    }
    let many = Files::open(Path::new("b-00001-of-09999.gguf"));
    assert!(matches!(
        many,
        Err(LoadError::Split {
            source: SplitError::TooManyParts { count: 9999, .. },
            ..
        })
    ));
}
