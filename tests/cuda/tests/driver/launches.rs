//! No call launches what would read or write beyond its buffers.

use crate::emulated::{in_emulation, open};
use andon_cuda::{
    Addition, Attend, Buffer, Device, Error, Format, Gate, Given, Heads, Kernel, KvType, PAGE, Room,
};
use andon_cuda_check::passes::{all, numbers, packed, run};
use std::panic::{AssertUnwindSafe, catch_unwind};

const K: usize = 64;
const ROWS: usize = 40;

fn addition(delta: &Buffer<f32>) -> Addition<'_> {
    Addition {
        delta,
        weight: None,
        scale: 1.0,
    }
}

/// The one launch that is allowed packs a matrix: any more would break the device, which has to be whole at the end.
#[test]
fn wrong_arguments_launch_nothing() {
    let one = [("ANDON_EMULATED_LAUNCHES", "1")];
    in_emulation("launches::wrong_arguments_launch_nothing", &one, || {
        let device = open();
        let matrix = packed(&device, 1, ROWS, K);
        let buffer = |len: usize| device.zeros::<f32>(len).expect("room");
        let columns = |count: usize| device.columns(K, count).expect("room");
        let refuses = |what: &str, call: &mut dyn FnMut() -> Result<(), Error>| {
            let result = catch_unwind(AssertUnwindSafe(call));
            assert!(result.is_err(), "{what} is not refused");
        };
        let product = |count, kernel, output, stride| {
            device.matmul(
                &matrix,
                &columns(8),
                count,
                kernel,
                &mut buffer(output),
                stride,
            )
        };
        refuses("a short output", &mut || {
            product(2, Kernel::Decode8, 2 * ROWS - 1, ROWS)
        });
        refuses("a short stride", &mut || {
            product(2, Kernel::Decode8, 999, ROWS - 1)
        });
        refuses("too many for the kernel", &mut || {
            product(9, Kernel::Decode8, 9 * ROWS, ROWS)
        });
        refuses("more than there are", &mut || {
            product(9, Kernel::Panel64, 9 * ROWS, ROWS)
        });
        refuses("no columns", &mut || {
            product(0, Kernel::Decode8, ROWS, ROWS)
        });
        refuses("other rows", &mut || {
            let columns = device.columns(2 * K, 1)?;
            device.matmul(
                &matrix,
                &columns,
                1,
                Kernel::Decode8,
                &mut buffer(ROWS),
                ROWS,
            )
        });
        refuses("rows of another length", &mut || {
            let raw = device.zeros::<u8>(ROWS * K / 32 * 34 - 1)?;
            device.pack(Format::Q8_0, &raw, ROWS, K).map(drop)
        });
        refuses("half a block", &mut || {
            device
                .pack(Format::Q4K, &device.zeros(144)?, 1, 128)
                .map(drop)
        });
        refuses("few values", &mut || {
            device.quantize(&buffer(K - 1), K, 1, &mut columns(1))
        });
        refuses("few columns", &mut || {
            device.quantize(&buffer(9 * K), K, 9, &mut columns(8))
        });
        refuses("few tokens", &mut || {
            device.embed(&matrix, &device.zeros(1)?, 2, 1.0, &mut buffer(2 * K))
        });
        refuses("room for a token", &mut || {
            device.embed(&matrix, &device.zeros(2)?, 2, 1.0, &mut buffer(2 * K - 1))
        });
        refuses("nothing to do", &mut || {
            device.add_norm_quantize(&mut buffer(K), 1, None, None, 1e-5, &mut columns(1))
        });
        refuses("a short residual", &mut || {
            let (delta, weight) = (buffer(2 * K), buffer(K));
            let (added, weight) = (Some(addition(&delta)), Some(&weight));
            device.add_norm_quantize(
                &mut buffer(2 * K - 1),
                2,
                added,
                weight,
                1e-5,
                &mut columns(2),
            )
        });
        refuses("a short addition", &mut || {
            let delta = buffer(2 * K - 1);
            let added = Some(addition(&delta));
            device.add_norm_quantize(&mut buffer(2 * K), 2, added, None, 1e-5, &mut columns(2))
        });
        refuses("short weights", &mut || {
            let weight = buffer(K - 1);
            device.add_norm_quantize(
                &mut buffer(K),
                1,
                None,
                Some(&weight),
                1e-5,
                &mut columns(1),
            )
        });
        refuses("short gates", &mut || {
            device.glu_quantize(Gate::Silu, &buffer(2 * K - 1), 2 * K, 1, &mut columns(1))
        });
        refuses("gates closer than they are long", &mut || {
            device.glu_quantize(Gate::Silu, &buffer(9 * K), 2 * K - 1, 2, &mut columns(2))
        });
        refuses("a long bias", &mut || {
            device.add_bias(&mut buffer(2 * K), K, 2, &buffer(K + 1))
        });
        refuses("a norm behind the column", &mut || {
            device.norm_columns(&mut buffer(2 * K), K, 2, 1, &buffer(K), 1e-5)
        });
        refuses("short logits", &mut || {
            device.finish_logits(&mut buffer(K - 1), K, (K, 1), None, 1.0, None)
        });
        refuses("a short bias of logits", &mut || {
            let bias = buffer(K - 1);
            device.finish_logits(&mut buffer(K), K, (K, 1), Some(&bias), 1.0, None)
        });
        refuses("room for gathered columns", &mut || {
            let indices = device.upload(&[0i32, 0])?;
            device.gather_columns(&buffer(K), K, (&indices, 2), &mut buffer(2 * K - 1))
        });
        refuses("as many indices as columns", &mut || {
            let indices = device.upload(&[0i32, 0])?;
            device.gather_columns(&buffer(K), K, (&indices, 3), &mut buffer(3 * K))
        });
        refuses("no best token", &mut || device.top_k(5, 1, 0).map(drop));
        refuses("more tokens than there are", &mut || {
            device.top_k(5, 1, 6).map(drop)
        });
        refuses("few logits", &mut || {
            device.find_top_k(&buffer(9), 5, 2, &mut device.top_k(5, 2, 1)?)
        });
        refuses("many columns", &mut || {
            device.find_top_k(&buffer(15), 5, 3, &mut device.top_k(5, 2, 1)?)
        });
        refuses("words of less than 16 bytes", &mut || {
            device.stream_copy(&device.zeros(6)?, &mut device.zeros(8)?)
        });
        refuses("room for a copy", &mut || {
            device.copy(&buffer(9), &mut buffer(8))
        });
        refuses("room for what is written", &mut || {
            device.write(&[0.0; 9], &mut buffer(8))
        });
        refuses("more than is there", &mut || {
            device.read(&buffer(8), &mut [0.0; 9])
        });
        wrong_places(&device, &refuses);
        device.finish().expect("nothing was launched");
    });
}

type Refuses<'a> = dyn Fn(&str, &mut dyn FnMut() -> Result<(), Error>) + 'a;

/// What is refused of places, the cache, heads and attention; none of it launches anything.
fn wrong_places(device: &Device, refuses: &Refuses<'_>) {
    let buffer = |len: usize| device.zeros::<f32>(len).expect("room");
    let mut places = device.places(4, 3, 5).expect("room");
    let long = 3 * PAGE;
    for (what, runs, reach) in [
        ("too many columns", &[run(5, 0, &[0])][..], long),
        (
            "too many pages",
            &[run(1, 0, &[0, 1]), run(1, 0, &[2, 3])],
            long,
        ),
        ("a page of no cache", &[run(1, 0, &[5])], long),
        (
            "no page for the last column",
            &[run(2, PAGE - 1, &[0])],
            long,
        ),
        ("a run behind the reach", &[run(2, 63, &[0, 1])], 64),
        ("no columns in a run", &[run(0, 3, &[0])], long),
        (
            "a page that two write to",
            &[run(1, 0, &[2]), run(1, 9, &[2])],
            long,
        ),
    ] {
        refuses(what, &mut || device.place(runs, reach, &mut places));
    }
    // Pages that are only read may be shared.
    device
        .place(
            &[run(1, 64, &[0, 1]), run(1, 70, &[0, 2])],
            long,
            &mut device.places(2, 4, 5).expect("room"),
        )
        .expect("a shared beginning");
    device
        .place(&[run(1, 0, &[1]), run(2, 3, &[2])], long, &mut places)
        .expect("three columns");
    let cache = |pages| device.cache(pages, 2, 32, KvType::F16).expect("room");
    let (of_column, rotations) = ((4 + 2 * 2) * 32, buffer(3 * 16 * 2));
    let heads = Heads {
        heads: 4,
        bias: None,
        query_weight: None,
        key_weight: None,
        epsilon: 1e-5,
        rotations: &rotations,
        pairs: 16,
        adjacent: false,
        query_factors: None,
    };
    let short = buffer(3 * 16 * 2 - 1);
    let short_bias = buffer(of_column - 1);
    let short_weight = buffer(31);
    let short_factors = buffer(2);
    for (what, heads) in [
        (
            "short rotations",
            Heads {
                rotations: &short,
                ..heads
            },
        ),
        ("too many pairs", Heads { pairs: 17, ..heads }),
        (
            "a short bias",
            Heads {
                bias: Some(&short_bias),
                ..heads
            },
        ),
        (
            "a short norm",
            Heads {
                key_weight: Some(&short_weight),
                ..heads
            },
        ),
        (
            "few factors",
            Heads {
                query_factors: Some(&short_factors),
                ..heads
            },
        ),
    ] {
        refuses(what, &mut || {
            device.place_heads(&mut buffer(3 * of_column), &heads, &mut cache(5), &places)
        });
    }
    refuses("few heads", &mut || {
        device.place_heads(
            &mut buffer(3 * of_column - 1),
            &heads,
            &mut cache(5),
            &places,
        )
    });
    refuses("a smaller cache", &mut || {
        device.place_heads(&mut buffer(3 * of_column), &heads, &mut cache(4), &places)
    });
    let attend = Attend {
        heads: 4,
        query_stride: 4 * 32,
        before: usize::MAX,
        after: 0,
        scale: 1.0,
        cap: None,
    };
    let scratch = Attend::scratch(4, 32, 3, long);
    let tries = |what: &str,
                 attend: Attend,
                 queries: usize,
                 scratch: usize,
                 output: usize,
                 pages: usize| {
        refuses(what, &mut || {
            let cache = cache(pages);
            let cached = (&cache, &places);
            device.attend(
                &attend,
                &buffer(queries),
                cached,
                &mut buffer(scratch),
                &mut buffer(output),
            )
        });
    };
    let all = 3 * 4 * 32;
    tries("few queries", attend, all - 1, scratch, all, 5);
    tries("little scratch", attend, all, scratch - 1, all, 5);
    tries("a short output", attend, all, scratch, all - 1, 5);
    tries("another cache's places", attend, all, scratch, all, 4);
    tries(
        "heads in no groups",
        Attend { heads: 3, ..attend },
        all,
        scratch,
        all,
        5,
    );
    tries(
        "queries closer than they are long",
        Attend {
            query_stride: 127,
            ..attend
        },
        all,
        scratch,
        all,
        5,
    );
    refuses("other heads", &mut || {
        device.cache(1, 1, 80, KvType::Q8).map(drop)
    });
    let mut cache = cache(2);
    refuses("no such page", &mut || {
        device.read_page(&cache, 2, &mut Vec::new(), &mut Vec::new())
    });
    refuses("no page to copy to", &mut || {
        device.copy_page(&mut cache, 0, 2)
    });
    refuses("a page over itself", &mut || {
        device.copy_page(&mut cache, 1, 1)
    });
    refuses("half a page", &mut || {
        device.write_page(&mut cache, 0, &[], &[0; 2 * 64 * 32])
    });
}

/// Newer devices start kernels before those before them have ended, by another call of the driver.
#[test]
fn overlapping_launches_give_the_same() {
    let newer = [("ANDON_EMULATED_CAPABILITY", "90")];
    in_emulation(
        "launches::overlapping_launches_give_the_same",
        &newer,
        || {
            let device = open();
            let matrix = packed(&device, 1, ROWS, K);
            let x = device.upload(&numbers(2, 3 * K)).expect("room");
            let mut columns = device.columns(K, 3).expect("room");
            device.quantize(&x, K, 3, &mut columns).expect("it runs");
            let product = |kernel| {
                let mut output = device.zeros(3 * ROWS).expect("room");
                device
                    .matmul(&matrix, &columns, 3, kernel, &mut output, ROWS)
                    .expect("it runs");
                all(&device, &output)
            };
            let overlapping = product(Kernel::Decode8);
            assert!(overlapping.iter().all(|&value| value != 0.0));
            assert_eq!(overlapping, product(Kernel::Panel64));
        },
    );
}

#[test]
fn what_a_pass_is_given_comes_in_one_piece() {
    let name = "launches::what_a_pass_is_given_comes_in_one_piece";
    in_emulation(name, &[], || {
        let device = open();
        let room = Room {
            columns: 5,
            pages: 3,
            page_count: 3,
            outputs: 2,
            numbers: 7,
        };
        let mut places = device.room(&room).expect("room");
        assert!(places.tokens().is_empty() && places.outputs(0..0).is_empty());
        let words = |buffer: &Buffer<u32>| {
            let mut words = vec![0; buffer.len()];
            device.read(buffer, &mut words).expect("it can be read");
            words
        };
        let given = |tokens, outputs, numbers, columns| Given {
            runs: match columns {
                1 => const { &[run(1, 0, &[2])] },
                _ => const { &[run(3, 60, &[0, 1])] },
            },
            reach: PAGE,
            tokens,
            outputs,
            numbers,
        };
        // More than the two that are filled in turn, each of another length.
        let numbers = numbers(3, 7);
        for (tokens, outputs, count, columns) in [
            (&[5, 6, 7][..], &[1, 2][..], 7, 3),
            (&[8], &[0], 3, 1),
            (&[9, 10, 11], &[], 0, 3),
            (&[], &[2, 0], 5, 3),
            (&[12], &[], 1, 1),
        ] {
            let given = given(tokens, outputs, &numbers[..count], columns);
            device.give(&given, &mut places).expect("there is room");
            assert_eq!(words(&places.tokens()), tokens);
            let mut indices = vec![0; outputs.len()];
            device
                .read(&places.outputs(0..outputs.len()), &mut indices)
                .expect("it can be read");
            assert!(
                indices.iter().eq(outputs
                    .iter()
                    .map(|&index: &u32| index as i32)
                    .collect::<Vec<_>>()
                    .iter())
            );
            assert_eq!(all(&device, &places.numbers(0..count)), numbers[..count]);
            let last = count.saturating_sub(1);
            assert_eq!(
                all(&device, &places.numbers(last..count)),
                numbers[last..count]
            );
            assert_eq!(places.columns(), columns);
        }
        let mut refuses = |what: &str, given: &Given<'_>| {
            let result = catch_unwind(AssertUnwindSafe(|| device.give(given, &mut places)));
            assert!(result.is_err(), "{what} is not refused");
        };
        refuses("a token without a column", &given(&[1, 2], &[], &[], 1));
        refuses("too many outputs", &given(&[], &[0, 0, 0], &[], 1));
        refuses("too many numbers", &given(&[], &[], &[0.0; 8], 1));
        let beyond = catch_unwind(AssertUnwindSafe(|| places.numbers(0..2)));
        assert!(beyond.is_err(), "numbers that were not given");
    });
}
