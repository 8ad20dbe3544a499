//! Words for what a key may do.

use crate::ops::holders::Duty;
use crate::pure::crypto::sign::role;

/// Returns the names of the role bits.
pub fn role_names(roles: u32) -> Vec<&'static str> {
    let names = [
        (role::WRITE, "write"),
        (role::READ_META, "read-meta"),
        (role::READ_DATA, "read-data"),
        (role::MAINTAIN, "maintain"),
        (role::FORGET, "forget"),
        (role::HOLD, "hold"),
        (role::ADMIN, "admin"),
        (role::ATTEST, "attest"),
    ];
    names
        .into_iter()
        .filter(|(bit, _)| roles & bit != 0)
        .map(|(_, name)| name)
        .collect()
}

/// Returns the duty that has exactly these roles.
pub fn duty_name(roles: u32) -> Option<&'static str> {
    let all = [
        (Duty::PutOnly, "put-only"),
        (Duty::Backup, "backup"),
        (Duty::Reader, "reader"),
        (Duty::Maintainer, "maintainer"),
        (Duty::Admin, "admin"),
    ];
    all.into_iter()
        .find(|(duty, _)| duty.roles() == roles)
        .map(|(_, name)| name)
}
