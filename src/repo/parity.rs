//! A store that keeps a sidecar beside every object (format-spec chapter 18, ADR-0026). Whoever writes or deletes through it does not have
//! to think of them.
//!
//! The sidecar comes after its object and goes before it. So there is none for an object that was never created, and a sidecar without an
//! object means that the object was lost: whatever was deleted on purpose had lost its sidecar first.

use crate::edge::store::{
    Abilities, Created, Listed, Lock, Part, Partial, Prefix, Refused, Retention, Stat, Store, StoreError, StoreKey,
    Version, Versions,
};
use crate::pure::base::LockMode;
use crate::pure::format::name::ObjectName;
use crate::pure::format::parity::{self, COPIED_BELOW, Shape};
use bytes::Bytes;
use std::sync::Arc;

/// Keeps sidecars in a store that is a directory.
#[derive(Debug)]
pub struct ParityStore {
    inner: Arc<dyn Store>,
    shape: Shape,
}

impl ParityStore {
    /// Wraps a store.
    pub fn new(inner: Arc<dyn Store>, shape: Shape) -> ParityStore {
        ParityStore { inner, shape }
    }
}

/// Returns the key of the sidecar of an object; `None` if objects of this name have none.
pub fn sidecar_key(object: &StoreKey) -> Option<StoreKey> {
    let name = ObjectName::parse(object.as_str())?;
    parity::has_sidecar(&name)
        .then(|| StoreKey::new(parity::sidecar_name(object.as_str())).expect("a prefix of letters keeps a key one"))
}

/// Makes the sidecar of an object.
pub fn sidecar_of(shape: Shape, object: &Bytes) -> Bytes {
    match (object.len() as u64) < COPIED_BELOW {
        true => object.clone(),
        false => Bytes::from(parity::encode(shape, object)),
    }
}

/// Writes a sidecar. One that is there is of an earlier object of this name (a hold that was released and made again), or damaged.
///
/// # Errors
/// When the store fails.
pub fn write_sidecar(store: &dyn Store, key: &StoreKey, sidecar: &Bytes) -> Result<(), StoreError> {
    if store.create(key, sidecar.clone())? == Created::Exists {
        store.remove(std::slice::from_ref(key))?;
        // If it is there again, somebody else has just made the same.
        let _same = store.create(key, sidecar.clone())?;
    }
    Ok(())
}

impl Store for ParityStore {
    fn create(&self, key: &StoreKey, body: Bytes) -> Result<Created, StoreError> {
        let Some(beside) = sidecar_key(key) else {
            return self.inner.create(key, body);
        };
        let sidecar = sidecar_of(self.shape, &body);
        let created = self.inner.create(key, body)?;
        if created == Created::New {
            write_sidecar(&*self.inner, &beside, &sidecar)?;
        }
        Ok(created)
    }

    fn read(&self, key: &StoreKey, part: Part) -> Result<Bytes, StoreError> {
        self.inner.read(key, part)
    }

    fn read_into(&self, key: &StoreKey, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        self.inner.read_into(key, offset, buffer)
    }

    fn read_on(&self, key: &StoreKey, part: &Part, partial: &mut Partial) -> Result<(), StoreError> {
        self.inner.read_on(key, part, partial)
    }

    fn list(&self, prefix: &Prefix, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError> {
        self.inner.list(prefix, each)
    }

    fn list_after(
        &self,
        prefix: &Prefix,
        after: Option<&StoreKey>,
        each: &mut dyn FnMut(Listed),
    ) -> Result<(), StoreError> {
        self.inner.list_after(prefix, after, each)
    }

    fn stat(&self, key: &StoreKey) -> Result<Stat, StoreError> {
        self.inner.stat(key)
    }

    fn remove(&self, keys: &[StoreKey]) -> Result<(), StoreError> {
        let beside: Vec<StoreKey> = keys.iter().filter_map(sidecar_key).collect();
        if !beside.is_empty() {
            self.inner.remove(&beside)?;
        }
        self.inner.remove(keys)
    }

    fn put_back(&self, key: &StoreKey, body: Bytes) -> Result<(), StoreError> {
        self.inner.put_back(key, body)
    }

    fn prepare(&self) -> Result<(), StoreError> {
        self.inner.prepare()
    }

    fn probe(&self) -> Result<Abilities, StoreError> {
        self.inner.probe()
    }

    fn sweep(&self) -> Result<u64, StoreError> {
        self.inner.sweep()
    }

    fn give_up_reserve(&self) -> bool {
        self.inner.give_up_reserve()
    }

    fn set_conditional(&self, conditional: bool) {
        self.inner.set_conditional(conditional);
    }

    fn set_lock(&self, lock: Option<Lock>) {
        self.inner.set_lock(lock);
    }

    fn try_lock(&self, mode: LockMode) -> Result<(), StoreError> {
        self.inner.try_lock(mode)
    }

    fn retention(&self, key: &StoreKey, version: &Version) -> Result<Option<Retention>, StoreError> {
        self.inner.retention(key, version)
    }

    fn extend(&self, key: &StoreKey, version: &Version, retention: Retention) -> Result<(), StoreError> {
        self.inner.extend(key, version, retention)
    }

    fn erase(&self, keys: &[StoreKey]) -> Result<Vec<Refused>, StoreError> {
        let beside: Vec<StoreKey> = keys.iter().filter_map(sidecar_key).collect();
        if !beside.is_empty() {
            self.inner.remove(&beside)?;
        }
        self.inner.erase(keys)
    }

    fn list_versions(
        &self,
        prefix: &Prefix,
        after: Option<&StoreKey>,
        each: &mut dyn FnMut(Versions),
    ) -> Result<(), StoreError> {
        self.inner.list_versions(prefix, after, each)
    }

    fn location(&self) -> String {
        self.inner.location()
    }

    fn is_local(&self) -> bool {
        self.inner.is_local()
    }

    fn requests(&self) -> u64 {
        self.inner.requests()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::store::contract;
    use crate::edge::store::local::LocalStore;
    use crate::edge::store::memory::MemoryStore;

    const SID: &str = "00112233445566778899aabbccddeeff";

    fn keys(store: &dyn Store) -> Vec<String> {
        let mut keys = Vec::new();
        let all = Prefix::new("").unwrap();
        store.list(&all, &mut |row| keys.push(row.key.to_string())).unwrap();
        keys
    }

    fn key(text: impl Into<String>) -> StoreKey {
        StoreKey::new(text).unwrap()
    }

    #[test]
    fn keeps_the_store_contract() {
        let directory = tempfile::tempdir().unwrap();
        let local = LocalStore::new(directory.path().join("repo"), true);
        local.prepare().unwrap();
        contract::check(
            &ParityStore::new(Arc::new(local), Shape::STANDARD),
            &contract::Options::default(),
        );
    }

    #[test]
    fn sidecars_come_and_go_with_their_objects_and_passwords_have_none() {
        let memory = MemoryStore::new();
        let store = ParityStore::new(Arc::new(memory.clone()), Shape::STANDARD);
        let large = Bytes::from(vec![7; 100_000]);
        let pack = key(format!("data/00/{SID}-{SID}"));
        let (hold, password) = (key(format!("hold/{SID}/legal")), key(format!("keys/{SID}/0000")));
        for (key, body) in [
            (&pack, large.clone()),
            (&hold, Bytes::from_static(b"hold")),
            (&password, Bytes::from_static(b"password")),
            (&key(format!("sess/{SID}/0000")), Bytes::from_static(b"session")),
        ] {
            assert_eq!(store.create(key, body.clone()).unwrap(), Created::New);
            assert_eq!(store.create(key, body).unwrap(), Created::Exists);
        }
        let beside = [format!("par/{pack}"), format!("par/{hold}")];
        let sidecars =
            |keys: Vec<String>| -> Vec<String> { keys.into_iter().filter(|key| key.starts_with("par/")).collect() };
        assert_eq!(sidecars(keys(&memory)), beside);
        let sidecar = memory.read(&key(&beside[0]), Part::Whole).unwrap();
        assert!(parity::is_intact(&sidecar, &large));
        store.remove(&[hold.clone(), password]).unwrap();
        assert_eq!(sidecars(keys(&memory)), beside[..1]);
        // One that was left by somebody who did not know of it gives way.
        let old = Bytes::from_static(b"of an earlier hold");
        assert_eq!(memory.create(&key(&beside[1]), old).unwrap(), Created::New);
        let again = Bytes::from_static(b"hold again");
        assert_eq!(store.create(&hold, again.clone()).unwrap(), Created::New);
        assert_eq!(memory.read(&key(&beside[1]), Part::Whole).unwrap(), again);
    }
}
