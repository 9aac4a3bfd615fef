//! Who may change what is kept: root, the daemon's own user, and the members of configured groups.

use std::ffi::CString;

use nix::unistd::{Gid, Group, Uid, User, geteuid, getgrouplist};

use super::RegistryError;
use crate::config::models::ModelsConfig;

/// Who is at the other end of a Unix socket, as the kernel says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The user.
    pub uid: u32,
    /// The user's group at the time of the connection.
    pub gid: u32,
}

/// Whether `peer` may add, remove and verify models. Looks into the system's users and groups, so it may block.
///
/// # Errors
/// [`RegistryError::Denied`], which says who may.
pub fn may_change(config: &ModelsConfig, peer: Peer) -> Result<(), RegistryError> {
    let uid = Uid::from_raw(peer.uid);
    if uid.is_root() || uid == geteuid() {
        return Ok(());
    }
    let admins: Vec<Gid> = config
        .admin_groups
        .iter()
        .filter_map(|name| Group::from_name(name).ok().flatten())
        .map(|group| group.gid)
        .collect();
    if !admins.is_empty() {
        let own = Gid::from_raw(peer.gid);
        let mut groups = vec![own];
        if let Ok(Some(user)) = User::from_uid(uid)
            && let Ok(name) = CString::new(user.name)
        {
            groups.extend(getgrouplist(&name, user.gid).unwrap_or_default());
        }
        if groups.iter().any(|group| admins.contains(group)) {
            return Ok(());
        }
    }
    Err(RegistryError::Denied(
        "models are changed by root, by the daemon's own user, and by members of the groups in [models] \
         admin-groups"
            .to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::{Peer, may_change};
    use crate::config::models::ModelsConfig;
    use nix::unistd::{Group, geteuid};

    #[test]
    fn root_the_own_user_and_named_groups_may() {
        let mut config = ModelsConfig::default();
        let peer = |uid, gid| Peer { uid, gid };
        assert!(may_change(&config, peer(0, 0)).is_ok());
        assert!(may_change(&config, peer(geteuid().as_raw(), 7)).is_ok());
        // A user and a group that no system has.
        let stranger = peer(4_000_000_001, 4_000_000_002);
        assert!(may_change(&config, stranger).is_err());
        config.admin_groups = vec!["no-such-group-here".to_owned()];
        assert!(may_change(&config, stranger).is_err());
        if let Ok(Some(group)) = Group::from_gid(0.into()) {
            config.admin_groups.push(group.name);
            assert!(may_change(&config, peer(4_000_000_001, 0)).is_ok());
            assert!(may_change(&config, stranger).is_err());
        }
    }
}
