//! Weights that come to the device in pieces are those that come at once.

use crate::emulated::{in_emulation, open};
use andon_cuda::{Device, Error, Format, Kernel, Loader, Matrix};
use std::sync::Arc;

const K: usize = 512;
const ROWS: usize = 100;
const TILE: usize = 16;

/// What a matrix is to kernels: its rows, looked up, and products of it.
fn seen(device: &Device, matrix: &Matrix) -> Vec<u32> {
    let tokens: Vec<u32> = (0..ROWS as u32).collect();
    let tokens = device.upload(&tokens).expect("room");
    let mut rows = device.zeros::<f32>(ROWS * K).expect("room");
    device
        .embed(matrix, &tokens, ROWS, 1.0, &mut rows)
        .expect("rows");
    let x: Vec<f32> = (0..K).map(|index| (index as f32 * 0.37).sin()).collect();
    let x = device.upload(&x).expect("room");
    let mut product = device.zeros::<f32>(ROWS).expect("room");
    let multiplied = if matrix.format().is_quantized() {
        let mut columns = device.columns(K, 1).expect("room");
        device.quantize(&x, K, 1, &mut columns).expect("columns");
        device.matmul(matrix, &columns, 1, Kernel::Decode8, &mut product, ROWS)
    } else {
        device.matmul_floats(matrix, (&x, K), 1, &mut product, ROWS)
    };
    multiplied.expect("a product");
    let mut all = vec![0.0; ROWS * K];
    device.read(&rows, &mut all).expect("they are there");
    let mut sums = vec![0.0; ROWS];
    device.read(&product, &mut sums).expect("they are there");
    all.extend(sums);
    all.into_iter().map(f32::to_bits).collect()
}

/// Rows of a format, whose bytes are as mixed as those of files; floats in them are finite.
fn rows(format: Format) -> Vec<u8> {
    let bytes = format.file_bytes(ROWS, K).expect("whole blocks");
    (0..bytes)
        .map(|index| (index * 31 % 59 + index / 997) as u8 & 0x3b)
        .collect()
}

#[test]
fn pieces_make_the_same_matrix() {
    in_emulation("loads::pieces_make_the_same_matrix", &[], || {
        let device = Arc::new(open());
        for format in Format::ALL {
            let raw = rows(format);
            let whole = device.upload(&raw).expect("room");
            let whole = device.pack(format, &whole, ROWS, K).expect("it packs");
            let expected = seen(&device, &whole);
            let row_bytes = raw.len() / ROWS;
            for tiles in [1, 2, 3, 7] {
                let mut loader =
                    Loader::new(&device, tiles * TILE * row_bytes).expect("room for pieces");
                let count = Loader::rows_of(format, K, tiles * TILE * row_bytes);
                assert_eq!(count, tiles * TILE);
                let matrix = loader.matrix(format, ROWS, K).expect("room");
                assert_eq!(Some(matrix.bytes()), format.device_bytes(ROWS, K));
                for (index, piece) in raw.chunks(count * row_bytes).enumerate() {
                    loader
                        .pack(&matrix, index * count, piece)
                        .expect("it packs");
                }
                loader.finish().expect("all of it");
                assert_eq!(seen(&device, &matrix), expected, "{format:?} by {tiles}");
            }
        }
    });
}

#[test]
fn vectors_are_copied_whole_and_memory_comes_back() {
    let name = "loads::vectors_are_copied_whole_and_memory_comes_back";
    in_emulation(name, &[], || {
        let device = Arc::new(open());
        let free = || device.limits().expect("it says").memory_bytes.0;
        let before = free();
        let mut loader = Loader::new(&device, 100).expect("room for pieces");
        let values: Vec<f32> = (0..333).map(|index| index as f32 - 7.5).collect();
        let buffer = loader.vector(&values).expect("room");
        loader.finish().expect("all of it");
        let mut read = vec![0.0; values.len()];
        device.read(&buffer, &mut read).expect("they are there");
        assert_eq!(read, values);
        let rows = free() / K;
        let none = loader.matrix(Format::Q8_0, rows / TILE * TILE, K);
        assert!(matches!(none, Err(Error::OutOfMemory { bytes }) if bytes > before));
        drop((buffer, loader));
        assert_eq!(free(), before);
    });
}
