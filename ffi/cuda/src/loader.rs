//! Weights on their way to a device, a piece at a time, beside what else the device does.
//!
//! Two pieces are under way: while one is copied and packed, the next is read into memory that the driver copies from by
//! itself. Both go by a stream of their own, so that nobody who computes waits for them.
//!
//! Invariant: what pieces are packed into stays until the stream has come to its end, whoever lets go of it.

use crate::buffer::{Buffer, Memory};
use crate::device::{Device, of};
use crate::error::Error;
use crate::matmul::{Format, Matrix, TILE_ROWS};
use cudarc::driver::sys::{CUdeviceptr, CUevent_flags, CUresult};
use cudarc::driver::{
    CudaEvent, CudaSlice, CudaStream, DevicePtr, DriverError, PinnedHostSlice, result,
};
use std::fmt;
use std::sync::Arc;

/// Brings weights to a device.
pub struct Loader {
    device: Arc<Device>,
    stream: Arc<CudaStream>,
    pieces: [Piece; 2],
    /// Which of them is next.
    next: usize,
    piece_bytes: usize,
    /// What is written by work that may be under way.
    kept: Vec<Arc<Memory>>,
}

/// Room for a piece.
struct Piece {
    here: PinnedHostSlice<u8>,
    there: CudaSlice<u8>,
    /// When it may be written again.
    done: Option<CudaEvent>,
}

fn taking(bytes: usize) -> impl Fn(DriverError) -> Error {
    move |error| match error.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfMemory { bytes },
        _ => Error::of("taking memory", error),
    }
}

impl Loader {
    /// One that has room for two pieces of `piece_bytes`, here and on the device.
    ///
    /// # Errors
    /// If there is none, or the driver refuses.
    pub fn new(device: &Arc<Device>, piece_bytes: usize) -> Result<Loader, Error> {
        let stream = device.context.new_stream().map_err(of("making a stream"))?;
        let piece = || {
            let bytes = piece_bytes.max(1);
            // SAFETY: it is written before the driver reads it, and by nobody else read.
            let here = unsafe { device.context.alloc_pinned(bytes) };
            // SAFETY: it is written before kernels read it.
            let there = unsafe { stream.alloc(bytes) };
            Ok::<_, Error>(Piece {
                here: here.map_err(taking(bytes))?,
                there: there.map_err(taking(bytes))?,
                done: None,
            })
        };
        let pieces = [piece()?, piece()?];
        Ok(Loader {
            device: Arc::clone(device),
            stream,
            pieces,
            next: 0,
            piece_bytes,
            kept: Vec::new(),
        })
    }

    /// Bytes that a loader takes for pieces, here and as many on the device.
    #[must_use]
    pub fn bytes(piece_bytes: usize) -> usize {
        piece_bytes.saturating_mul(2)
    }

    /// Room for a matrix, whose content is nothing yet.
    ///
    /// # Errors
    /// If there is none.
    ///
    /// # Panics
    /// If there are no rows, or they cannot be packed.
    pub fn matrix(&mut self, format: Format, rows: usize, k: usize) -> Result<Matrix, Error> {
        let bytes = format.device_bytes(rows, k).expect("rows can be packed");
        assert!(rows > 0, "a matrix has rows");
        Ok(Matrix {
            format,
            rows,
            k,
            packed: Buffer::of(self.zeros(bytes)?, 0, bytes),
        })
    }

    /// A copy of values.
    ///
    /// # Errors
    /// If there is no room for it, or it cannot be copied.
    pub fn vector(&mut self, values: &[f32]) -> Result<Buffer<f32>, Error> {
        let memory = self.zeros(size_of_val(values))?;
        let buffer = Buffer::of(memory, 0, values.len());
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_ne_bytes())
            .collect();
        let mut to = buffer.address(&self.stream);
        for piece in bytes.chunks(self.piece_bytes.max(1)) {
            let index = self.begin(piece)?;
            let slot = &self.pieces[index];
            // SAFETY: the buffer has room for all of the values, and is kept until the stream has come to its end.
            unsafe { self.send(slot, piece.len(), to) }?;
            to += piece.len() as CUdeviceptr;
            self.end(index)?;
        }
        Ok(buffer)
    }

    /// How many rows of a matrix one piece has room for: whole tiles.
    #[must_use]
    pub fn rows_of(format: Format, k: usize, piece_bytes: usize) -> usize {
        let tile = format.file_bytes(TILE_ROWS, k).unwrap_or(usize::MAX).max(1);
        piece_bytes / tile * TILE_ROWS
    }

    /// Packs some of a matrix's rows, from `first` on: whole tiles of 16 rows, but for its last. Returns when `rows` has been
    /// read; what comes of it is there after [`Loader::finish`].
    ///
    /// # Errors
    /// If the driver refuses, or what was asked for before failed.
    ///
    /// # Panics
    /// If these are no rows of the matrix, or more than a piece.
    pub fn pack(&mut self, matrix: &Matrix, first: usize, rows: &[u8]) -> Result<(), Error> {
        let row_bytes = matrix.format.file_bytes(1, matrix.k).unwrap_or(0).max(1);
        assert!(rows.len() <= self.piece_bytes && rows.len().is_multiple_of(row_bytes));
        let last = first + rows.len() / row_bytes;
        let index = self.begin(rows)?;
        self.kept.push(Arc::clone(&matrix.packed.memory));
        let slot = &self.pieces[index];
        let there = slot.there.device_ptr(&self.stream).0;
        // SAFETY: a piece is as long here as there.
        unsafe { self.send(slot, rows.len(), there) }?;
        // SAFETY: that copies the rows there, before; they stay until the piece's end is marked, which is after this.
        unsafe {
            self.device
                .pack_rows(&self.stream, there, first..last, matrix)
        }?;
        self.end(index)
    }

    /// Waits until everything is there.
    ///
    /// # Errors
    /// If something of it failed.
    pub fn finish(&mut self) -> Result<(), Error> {
        let of = of("bringing weights to the device");
        self.stream.synchronize().map_err(of)?;
        self.kept.clear();
        Ok(())
    }

    /// Memory that is all zero once the stream has come to its end.
    fn zeros(&mut self, bytes: usize) -> Result<Arc<Memory>, Error> {
        let slice: CudaSlice<u8> = self
            .stream
            .alloc_zeros(bytes.max(1))
            .map_err(taking(bytes))?;
        let len = slice.len();
        // It goes back in the order of those that use it, which is not this stream's.
        let address = slice.leak();
        // SAFETY: that is where it is, and how long; nobody else has it.
        let slice = unsafe { self.device.stream().upgrade_device_ptr(address, len) };
        let memory = Arc::new(Memory::new(slice, &self.device.turns));
        self.kept.push(Arc::clone(&memory));
        Ok(memory)
    }

    /// Waits for room for a piece, and reads it into that.
    fn begin(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        let index = self.next;
        self.next = (index + 1) % self.pieces.len();
        let piece = &mut self.pieces[index];
        let of = of("bringing weights to the device");
        if let Some(done) = piece.done.take() {
            done.synchronize().map_err(of)?;
        }
        let here = piece.here.as_mut_ptr().map_err(of)?;
        assert!(bytes.len() <= piece.here.len());
        // SAFETY: there is room for as many, and nobody reads it: what did has ended.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), here, bytes.len()) };
        Ok(index)
    }

    /// Copies the first bytes of a piece to `to`.
    ///
    /// # Safety
    /// There is room for them, which stays until the stream has come to its end.
    unsafe fn send(&self, piece: &Piece, bytes: usize, to: CUdeviceptr) -> Result<(), Error> {
        let of = of("bringing weights to the device");
        self.device.context.bind_to_thread().map_err(of)?;
        let here = piece.here.as_ptr().map_err(of)?;
        // SAFETY: so many bytes were written there.
        let here = unsafe { std::slice::from_raw_parts(here, bytes) };
        // SAFETY: as the caller says; the piece is not written before its end is marked, which is after this.
        unsafe { result::memcpy_htod_async(to, here, self.stream.cu_stream()) }.map_err(of)
    }

    /// Marks the end of what is done with a piece.
    fn end(&mut self, index: usize) -> Result<(), Error> {
        // Whoever waits for it sleeps: others compute.
        let event = self
            .stream
            .record_event(Some(CUevent_flags::CU_EVENT_BLOCKING_SYNC))
            .map_err(of("marking the end of work"))?;
        self.pieces[index].done = Some(event);
        Ok(())
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // What is under way reads and writes what goes with it. Where the device is lost, nothing is.
        let _ = self.stream.synchronize();
    }
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader")
            .field("piece_bytes", &self.piece_bytes)
            .finish_non_exhaustive()
    }
}
