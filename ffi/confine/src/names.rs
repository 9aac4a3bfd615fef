//! The libraries that look up users, groups and hosts, which the C library loads when it first needs one.
//!
//! After [`crate::calls::restrict`] no code can be loaded, so those that the system's configuration names are loaded before. One
//! that is configured later, or that is not there, is passed over by the C library as one that is not installed.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;

/// Which services are asked for what.
const SWITCH: &str = "/etc/nsswitch.conf";
/// What is looked up.
const DATABASES: [&str; 4] = ["passwd", "group", "initgroups", "hosts"];
/// What is asked where nothing is configured.
const ALWAYS: [&str; 2] = ["files", "dns"];
/// Longest name of a service, in bytes.
const NAME_BYTES_MAX: usize = 32;
/// Most services.
const SERVICES_MAX: usize = 16;

/// Loads them, for good.
pub fn load() {
    let text = fs::read_to_string(SWITCH).unwrap_or_default();
    for service in services(&text).iter().take(SERVICES_MAX) {
        let Ok(library) = CString::new(format!("libnss_{service}.so.2")) else {
            continue;
        };
        // SAFETY: the name is a string that ends; what the library does when it is loaded it would do when the C library loads
        // it for its own use, and nobody uses what is returned. One that is not there is not loaded: those of `ALWAYS` are part
        // of newer C libraries.
        unsafe { libc::dlopen(library.as_ptr(), libc::RTLD_LAZY) };
    }
}

/// The services that a configuration names, by what their libraries may be called.
fn services(text: &str) -> BTreeSet<&str> {
    let is_name = |word: &&str| {
        word.len() <= NAME_BYTES_MAX
            && word
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let mut services = BTreeSet::from(ALWAYS);
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let Some((database, words)) = line.split_once(':') else {
            continue;
        };
        if DATABASES.contains(&database.trim()) {
            // What stands in brackets is no name: it says what becomes of an answer.
            services.extend(words.split_whitespace().filter(is_name));
        }
    }
    services
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_those_of_users_groups_and_hosts() {
        let text = "# hosts: other\npasswd:  files systemd sss\nhosts: files mdns4_minimal [NOTFOUND=return] dns # end\n\
            shadow: secret\nnetworks: nets\nhosts: ../../evil\ngroup\n";
        let expected = ["dns", "files", "mdns4_minimal", "sss", "systemd"];
        assert_eq!(services(text), BTreeSet::from(expected));
        assert_eq!(services(""), BTreeSet::from(ALWAYS));
    }

    #[test]
    fn what_is_not_there_is_passed_over() {
        load();
    }
}
