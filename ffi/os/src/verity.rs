//! fs-verity: files that nobody changes any more, whose pages the kernel compares with their digests as they are read.
//!
//! ext4 and f2fs (with the feature `verity`) and btrfs have it, where the kernel was built with it. It is on for a file for
//! as long as that is there; a page that differs is an error to whoever reads it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

/// `_IOW('f', 133, struct fsverity_enable_arg)`
const ENABLE: u64 = 0x4080_6685;
/// `_IOWR('f', 134, struct fsverity_digest)`
const MEASURE: u64 = 0xc004_6686;
/// `FS_VERITY_HASH_ALG_SHA256`
const SHA256: u16 = 1;
/// Bytes that have a digest of their own.
const BLOCK_BYTES: u32 = 4096;
const DIGEST_BYTES: u16 = 32;

/// `struct fsverity_enable_arg`
#[repr(C)]
#[derive(Default)]
struct Enable {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt: u64,
    sig_size: u32,
    reserved: u32,
    sig: u64,
    reserved_too: [u64; 11],
}

/// `struct fsverity_digest`, with room for the digest.
#[repr(C)]
#[derive(Default)]
struct Measured {
    algorithm: u16,
    bytes: u16,
    digest: [u8; DIGEST_BYTES as usize],
}

const _: () = assert!(size_of::<Enable>() == 128 && size_of::<Measured>() == 36);

/// Turns fs-verity on for a file of which no writer is open: SHA-256, blocks of 4096 bytes, no salt. Reads it whole. False
/// where the file system or the kernel does not have it.
///
/// # Errors
/// If it has it and cannot turn it on.
pub fn protect(file: &File) -> io::Result<bool> {
    let wish = Enable {
        version: 1,
        hash_algorithm: SHA256.into(),
        block_size: BLOCK_BYTES,
        ..Enable::default()
    };
    // SAFETY: the descriptor is open, and the argument is what this request reads.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), ENABLE as _, &raw const wish) };
    if done == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EEXIST) => Ok(true),
        Some(code) if is_missing(code) => Ok(false),
        _ => Err(error),
    }
}

/// What the kernel measured of a file whose fs-verity is on with SHA-256: its size and the root of the digests of its
/// blocks, in one digest. `None` for any other file.
///
/// # Errors
/// If the system does not say.
pub fn measured(file: &File) -> io::Result<Option<[u8; 32]>> {
    let mut answer = Measured {
        bytes: DIGEST_BYTES,
        ..Measured::default()
    };
    // SAFETY: the descriptor is open, and there is room for as many bytes of digest as the argument says.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), MEASURE as _, &raw mut answer) };
    if done == 0 {
        let is_ours = answer.algorithm == SHA256 && answer.bytes == DIGEST_BYTES;
        return Ok(is_ours.then_some(answer.digest));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // It is off, or on with longer digests than ours.
        Some(libc::ENODATA | libc::EOVERFLOW) => Ok(None),
        Some(code) if is_missing(code) => Ok(None),
        _ => Err(error),
    }
}

/// Whether an error says that there is no such thing here. Blocks of this size are refused (`EINVAL`) where pages are
/// larger, by kernels before 6.3.
fn is_missing(code: i32) -> bool {
    matches!(
        code,
        libc::ENOTTY | libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL
    )
}

#[cfg(test)]
mod tests {
    use super::{measured, protect};
    use std::fs::{self, File, OpenOptions};

    #[test]
    fn a_file_is_protected_or_it_is_said_that_it_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "weights").unwrap();
        let file = File::open(&path).unwrap();
        assert_eq!(measured(&file).unwrap(), None);
        if protect(&file).unwrap() {
            // As fsverity-utils says: `printf weights > file; fsverity digest file`.
            let digest = measured(&file).unwrap().unwrap();
            assert_eq!(digest[..4], [0xcb, 0x10, 0x40, 0x18]);
            assert!(protect(&file).unwrap(), "a second time");
            assert!(OpenOptions::new().write(true).open(&path).is_err());
        } else {
            assert_eq!(measured(&file).unwrap(), None);
            assert!(OpenOptions::new().write(true).open(&path).is_ok());
        }
    }
}
