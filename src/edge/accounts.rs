//! Users and groups of this machine: numbers and names, as the system's name service has them.

use std::collections::{BTreeMap, BTreeSet};

/// Names longer than this, or with control characters, are not those of accounts.
const NAME_BYTES_MAX: usize = 256;
/// All names of one kind together; what comes after stays a number. A manifest has room for 16 MiB.
const TEXT_BYTES_MAX: usize = 2 << 20;

/// Returns the names of users, where there are any.
pub fn user_names(ids: &BTreeSet<u32>) -> BTreeMap<u32, String> {
    named(ids, |id| Some(uzers::get_user_by_uid(id)?.name().to_str()?.to_owned()))
}

/// Returns the names of groups, where there are any.
pub fn group_names(ids: &BTreeSet<u32>) -> BTreeMap<u32, String> {
    named(ids, |id| Some(uzers::get_group_by_gid(id)?.name().to_str()?.to_owned()))
}

/// Returns the number of a user.
pub fn user_id(name: &str) -> Option<u32> {
    uzers::get_user_by_name(name).map(|user| user.uid())
}

/// Returns the number of a group.
pub fn group_id(name: &str) -> Option<u32> {
    uzers::get_group_by_name(name).map(|group| group.gid())
}

fn named(ids: &BTreeSet<u32>, name_of: impl Fn(u32) -> Option<String>) -> BTreeMap<u32, String> {
    let is_name =
        |name: &String| !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.chars().any(char::is_control);
    let mut text_bytes = 0;
    ids.iter()
        .filter_map(|id| Some((*id, name_of(*id).filter(is_name)?)))
        .take_while(|(_, name)| {
            text_bytes += name.len();
            text_bytes <= TEXT_BYTES_MAX
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_has_a_name_and_nobody_has_the_last_number() {
        let ids = BTreeSet::from([0, u32::MAX - 7]);
        assert_eq!(user_names(&ids), BTreeMap::from([(0, "root".to_owned())]));
        assert_eq!(group_names(&ids), BTreeMap::from([(0, "root".to_owned())]));
        assert_eq!((user_id("root"), group_id("root")), (Some(0), Some(0)));
        assert_eq!(user_id("no such user here"), None);
        assert_eq!(group_id("nul\0in it"), None);
    }
}
