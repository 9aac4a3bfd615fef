//! Who may change what is kept: root, the daemon's own user, and the members of configured groups.

use andon_os::Peer;
use nix::unistd::{Gid, Group, Uid, geteuid};

use super::RegistryError;
use crate::config::models::ModelsConfig;

/// Whether `peer` may add, remove and verify models. Its groups are those of the process that connected, not those that
/// its user would have if it came anew. Looks into the system's groups, so it may block.
///
/// # Errors
/// [`RegistryError::Denied`], which says who may.
pub fn may_change(config: &ModelsConfig, peer: &Peer) -> Result<(), RegistryError> {
    let uid = Uid::from_raw(peer.uid);
    if uid.is_root() || uid == geteuid() {
        return Ok(());
    }
    let gid = |name: &String| Group::from_name(name).ok().flatten().map(|group| group.gid);
    let is_own = |gid: Gid| peer.groups.contains(&gid.as_raw());
    if config.admin_groups.iter().filter_map(gid).any(is_own) {
        return Ok(());
    }
    Err(RegistryError::Denied(
        "models are changed by root, by the daemon's own user, and by members of the groups in [models] \
         admin-groups"
            .to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::may_change;
    use crate::config::models::ModelsConfig;
    use andon_os::Peer;
    use nix::unistd::{Group, geteuid};

    #[test]
    fn root_the_own_user_and_named_groups_may() {
        let mut config = ModelsConfig::default();
        let peer = |uid, group| Peer {
            pid: 1,
            uid,
            groups: vec![4_000_000_003, group],
        };
        assert!(may_change(&config, &peer(0, 0)).is_ok());
        assert!(may_change(&config, &peer(geteuid().as_raw(), 7)).is_ok());
        // A user and a group that no system has.
        let stranger = peer(4_000_000_001, 4_000_000_002);
        assert!(may_change(&config, &stranger).is_err());
        config.admin_groups = vec!["no-such-group-here".to_owned()];
        assert!(may_change(&config, &stranger).is_err());
        if let Ok(Some(group)) = Group::from_gid(0.into()) {
            config.admin_groups.push(group.name);
            assert!(may_change(&config, &peer(4_000_000_001, 0)).is_ok());
            assert!(may_change(&config, &stranger).is_err());
        }
    }
}
