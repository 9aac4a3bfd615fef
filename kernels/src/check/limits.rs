//! What safe methods must refuse, since kernels trust lengths, and the ends of what they take.

use super::{Activations, Draw, Random, assert_same_bits, packed_product, scalar, weights};
use crate::op::attention::{CHUNK, PAGE, QuantizedQueries, Queries, TILE, key_groups, key_levels};
use crate::{Format, Isa, Share, Table, Tile, Tiles, TilesOf, pack};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::vec;
use std::vec::Vec;

fn assert_refused(what: &str, call: impl FnOnce()) {
    let outcome = catch_unwind(AssertUnwindSafe(call));
    assert!(outcome.is_err(), "{what} was taken");
}

#[test]
fn products_of_what_is_too_short_are_refused() {
    let (format, k, rows, columns) = (Format::Q4K, 512, 17, 3);
    let mut random = Random(21);
    let raw = weights(&mut random, format, k * rows, Draw::Random);
    let mut packed = vec![0; pack::bytes(format, rows, k).expect("it is packed")];
    pack::pack(format, &raw, rows, k, &mut packed);
    let x = Activations::new(&mut random, k, columns, Draw::Random);
    let mut output = vec![0.0; rows * columns];
    let table = Table::new(Isa::best()).expect("the best is supported");
    assert_refused("a matrix without its last byte", || {
        let mut tile = Tile::whole(&mut output, rows, columns);
        table.matmul(format, &raw[1..], x.columns(), &mut tile);
    });
    assert_refused("a packed matrix without its last byte", || {
        let mut tile = Tile::whole(&mut output, rows, columns);
        table.matmul_packed(format, &packed[1..], x.columns(), &mut tile);
    });
    let mut without_levels = x.columns();
    without_levels.quantized.levels = &x.levels[1..];
    let mut without_groups = x.columns();
    without_groups.quantized.groups = &x.groups[1..];
    let mut fewer = x.columns();
    fewer.count -= 1;
    let mut odd = x.columns();
    odd.k -= 32;
    for (what, columns_of) in [
        ("columns without the last level", without_levels),
        ("columns without the last group", without_groups),
        ("other columns than the tile's", fewer),
        ("rows that are not whole blocks", odd),
    ] {
        assert_refused(what, || {
            let mut tile = Tile::whole(&mut output, rows, columns);
            table.matmul(format, &raw, columns_of, &mut tile);
        });
        assert_refused(what, || {
            let mut tile = Tile::whole(&mut output, rows, columns);
            table.matmul_packed(format, &packed, columns_of, &mut tile);
        });
    }
    assert_refused("a format without a packed layout", || {
        let mut tile = Tile::whole(&mut output, rows, columns);
        table.matmul_packed(Format::Q2K, &packed, x.columns(), &mut tile);
    });
    let mut shares = [Share::default()];
    let matrix = TilesOf {
        output: &mut output,
        row_count: rows,
        tile_rows: 8,
    };
    let tiles = Tiles::new(&mut shares, columns, [matrix]);
    let next = || tiles.next(0).expect("there are three").1;
    let _ = next();
    assert_refused("a tile in the middle of packed ones", || {
        table.matmul_packed(format, &packed, x.columns(), &mut next());
    });
}

#[test]
fn attention_to_what_is_too_short_is_refused() {
    let (head_dim, tokens, tiles) = (72, 3, 4);
    let (levels, groups) = (key_levels(head_dim), key_groups(head_dim));
    let table = Table::new(Isa::best()).expect("the best is supported");
    let values = vec![1.0; tokens * head_dim];
    let queries = |head_dim: usize| Queries {
        values: &values,
        token_stride: 72,
        tokens,
        group: 1,
        head_dim,
    };
    let keys = vec![0u16; PAGE * head_dim];
    let mut scores = vec![0.0; (tokens - 1) * CHUNK + PAGE];
    table.scores(&queries(head_dim), &keys, tiles, 1.0, &mut scores);
    assert_refused("a page without its last key", || {
        table.scores(&queries(head_dim), &keys[1..], tiles, 1.0, &mut scores);
    });
    assert_refused("scores without the last", || {
        table.scores(&queries(head_dim), &keys, tiles, 1.0, &mut scores[1..]);
    });
    assert_refused("more tiles than a page has", || {
        table.scores(&queries(4), &keys, tiles + 1, 1.0, &mut scores);
    });
    let (query_levels, query_scales) = (vec![1i8; tokens * levels], vec![1.0; tokens * groups]);
    let offsets = vec![0; tokens * groups];
    let (key_levels, key_scales) = (vec![1i8; PAGE * levels], vec![0u16; PAGE * groups]);
    // What is missing at the end of levels, scales and offsets of queries, levels and scales of keys, and scores.
    for missing in 0..7 {
        let cut = |index: usize| usize::from(missing == index);
        let mut call = || {
            let queries = QuantizedQueries {
                levels: &query_levels[cut(1)..],
                scales: &query_scales[cut(2)..],
                offsets: &offsets[cut(3)..],
            };
            let keys = (&key_levels[cut(4)..], &key_scales[cut(5)..], tiles);
            let scores = &mut scores[cut(6)..];
            table.quantized_scores(queries, (tokens, head_dim), keys, 1.0, scores);
        };
        if missing == 0 {
            call();
        } else {
            assert_refused("a part without its last element", call);
        }
    }
    // Sizes whose products wrap around to what there is.
    for (rows, head_dim) in [(64, 1 << 63), (1 << 32, 1 << 32), (1 << 60, 64)] {
        assert_refused("sizes that overflow", || {
            let queries = QuantizedQueries {
                levels: &query_levels,
                scales: &query_scales,
                offsets: &offsets,
            };
            let keys = (&key_levels[..], &key_scales[..], tiles);
            table.quantized_scores(queries, (rows, head_dim), keys, 1.0, &mut scores);
        });
    }
    let weights = vec![1.0; (tokens - 1) * CHUNK + PAGE];
    let (halves, mut output) = (vec![0u16; PAGE * head_dim], vec![0.0; tokens * head_dim]);
    let value_levels = vec![0i8; PAGE * head_dim];
    for missing in 0..6 {
        let cut = |index: usize| usize::from(missing == index);
        let mut f16 = || {
            let positions = PAGE + cut(3);
            let (weights, output) = (&weights[cut(1)..], &mut output[cut(4)..]);
            table.weighted_sum(weights, &halves[cut(2)..], positions, head_dim, output);
        };
        if [0, 5].contains(&missing) {
            f16();
        } else {
            assert_refused("a part without its last element", f16);
        }
        let mut q8 = || {
            let positions = PAGE + cut(3);
            let (weights, output) = (&weights[cut(1)..], &mut output[cut(4)..]);
            let values = (&value_levels[cut(2)..], &key_scales[..PAGE - cut(5)]);
            table.quantized_weighted_sum(weights, values, positions, head_dim, output);
        };
        if missing == 0 {
            q8();
        } else {
            assert_refused("a part without its last element", q8);
        }
    }
}

#[test]
fn tiles_of_packed_rows_have_the_bits_of_the_whole() {
    let mut random = Random(22);
    for format in Format::ALL {
        let (k, rows, columns) = (3 * format.block_elements().max(32), 73, 5);
        let Some(bytes) = pack::bytes(format, rows, k) else {
            continue;
        };
        let raw = weights(&mut random, format, k * rows, Draw::Random);
        let mut packed = vec![0; bytes];
        pack::pack(format, &raw, rows, k, &mut packed);
        let x = Activations::new(&mut random, k, columns, Draw::Random);
        let expected = packed_product(&scalar(), format, &packed, rows, &x);
        for table in Table::runnable() {
            let mut output = vec![f32::NAN; rows * columns];
            let mut shares = [Share::default(), Share::default()];
            let matrix = TilesOf {
                output: &mut output,
                row_count: rows,
                tile_rows: 32,
            };
            let tiles = Tiles::new(&mut shares, columns, [matrix]);
            while let Some((_, mut tile)) = tiles.next(1) {
                table.matmul_packed(format, &packed, x.columns(), &mut tile);
            }
            let context = std::format!("{} {}", table.isa().name(), format.name());
            assert_same_bits(&output, &expected, &context);
        }
    }
}

#[test]
fn scores_of_the_largest_levels_are_exact() {
    let (head_dim, rows) = (96, 9);
    let (levels, groups) = (key_levels(head_dim), key_groups(head_dim));
    let one = half::f16::ONE.to_bits();
    for (query, key) in [(127, 127), (-127, 127), (127, -127), (-127, -127)] {
        let offsets = vec![-128 * 32 * i32::from(query); rows * groups];
        let (query_levels, scales) = (vec![query; rows * levels], vec![1.0; rows * groups]);
        let (key_levels, key_scales) = (vec![key; TILE * levels], vec![one; TILE * groups]);
        let expected = 96.0 * f32::from(query) * f32::from(key);
        for table in Table::runnable() {
            let mut scores: Vec<f32> = vec![0.0; (rows - 1) * CHUNK + TILE];
            let queries = QuantizedQueries {
                levels: &query_levels,
                scales: &scales,
                offsets: &offsets,
            };
            let keys = (&key_levels[..], &key_scales[..], 1);
            table.quantized_scores(queries, (rows, head_dim), keys, 1.0, &mut scores);
            for row in scores.chunks(CHUNK) {
                let right = |&score: &f32| score == expected;
                assert!(row[..TILE].iter().all(right), "{:?}", table.isa());
            }
        }
    }
}
