//! Owners by name: which number a user or group of the snapshot has on this machine.

use crate::edge::accounts;
use crate::pure::format::entry::Entry;
use crate::pure::format::manifest::Manifest;
use std::collections::BTreeMap;

/// Which numbers take the place of which. Empty: every number stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnerMap {
    pub users: BTreeMap<u32, u32>,
    pub groups: BTreeMap<u32, u32>,
}

impl OwnerMap {
    /// Looks every name of a snapshot up here. Those that are not known here keep their numbers, as with tar.
    pub fn by_name(manifest: &Manifest) -> OwnerMap {
        let map = |names: &BTreeMap<u32, String>, id_of: fn(&str) -> Option<u32>| {
            names
                .iter()
                .filter_map(|(id, name)| Some((*id, id_of(name)?)))
                .collect()
        };
        OwnerMap {
            users: map(&manifest.users, accounts::user_id),
            groups: map(&manifest.groups, accounts::group_id),
        }
    }

    /// Replaces the numbers of an entry, and returns whether that changed anything.
    pub(super) fn apply(&self, entry: &mut Entry) -> bool {
        let before = (entry.uid, entry.gid);
        entry.uid = *self.users.get(&entry.uid).unwrap_or(&entry.uid);
        entry.gid = *self.groups.get(&entry.gid).unwrap_or(&entry.gid);
        before != (entry.uid, entry.gid)
    }
}
