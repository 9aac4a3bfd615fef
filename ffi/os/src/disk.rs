//! Room on disks.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Bytes that the disk of a folder has for this user.
///
/// # Errors
/// If there is no such folder, or the system does not say.
pub fn free_bytes(folder: &Path) -> io::Result<u64> {
    let path = CString::new(folder.as_os_str().as_bytes())?;
    let mut room = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends with a zero, and there is room for the answer.
    let asked = unsafe { libc::statvfs(path.as_ptr(), room.as_mut_ptr()) };
    if asked != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it wrote all of it.
    let room = unsafe { room.assume_init() };
    // The types of the fields differ between platforms.
    #[allow(clippy::useless_conversion)]
    let (blocks, bytes) = (u64::from(room.f_bavail), u64::from(room.f_frsize));
    Ok(blocks.saturating_mul(bytes))
}
