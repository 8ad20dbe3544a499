//! Repositories that are small and have every kind of object: small chunks, small nodes, several key holders. `init` of a
//! real repository does not let anybody choose these, so it is done here by hand.

use crate::edge::host;
use crate::edge::store::Store;
use crate::pure::chunk::Profile;
use crate::pure::crypto::kdf::Cost;
use crate::pure::crypto::sign::{WriterKey, role};
use crate::pure::crypto::{EpochSecrets, Secret, Signer};
use crate::pure::format::config::Config;
use crate::pure::format::grant::{self, Grant, KidRow};
use crate::pure::format::name::ObjectName;
use crate::pure::id::{KeyId, RepoId};
use crate::repo::open::{Credential, create_new, make_protector};
use crate::repo::{Repo, RepoError};

/// The cheapest stretching that the format allows, for passwords of tests.
pub const CHEAP: Cost = Cost {
    memory_kib: 8,
    passes: 1,
    lanes: 1,
};

/// A key holder.
pub struct Holder {
    pub kid: KeyId,
    pub secret: Secret,
    label: String,
    roles: u32,
}

/// What whoever made the repository knows.
pub struct SmallRepo {
    pub config: Config,
    /// The admin first.
    pub holders: Vec<Holder>,
    secrets: EpochSecrets,
    /// Who signed the newest configuration.
    config_signer: usize,
}

impl SmallRepo {
    /// Makes a repository with an admin, small chunks (128 to 512 bytes), small nodes and short piece lists.
    ///
    /// # Errors
    /// When the store fails.
    pub fn init(store: &dyn Store, credential: &Credential) -> Result<SmallRepo, RepoError> {
        let repo = RepoId(host::random());
        let fresh = || Some(Secret::new(host::random()));
        let secrets = EpochSecrets {
            epoch: 1,
            id: fresh(),
            cdc: fresh(),
            split: fresh(),
            idx: fresh(),
            meta: fresh(),
            data: fresh(),
            psk: fresh(),
            ..EpochSecrets::none(1)
        };
        let admin = Holder {
            kid: KeyId(host::random()),
            secret: Secret::new(host::random()),
            label: "admin".into(),
            roles: role::ADMIN,
        };
        let mut config = Config::first(repo, host::now(), writer_key(&repo, &admin, 0));
        // Ten and six ones from bit 62 downwards: 256 bytes on average.
        let profile = Profile::new(128, 256, 512, 0x3ff << 53, 0x3f << 57);
        config.chunkers = vec![profile.expect("even sizes in order, masks without bit 63")];
        config.tree.leaf_bits = 4;
        config.tree.inner_bits = 4;
        config.tree.inline_bytes = 64;
        config.tree.inline_list = 4;
        config.tree.list_bits = 4;
        let small = SmallRepo {
            config,
            holders: vec![admin],
            secrets,
            config_signer: 0,
        };
        small.write_protector(store, 0, 0, credential)?;
        small.write_grant(store, 0, 0)?;
        small.write_config(store)?;
        Ok(small)
    }

    fn repo(&self) -> &RepoId {
        &self.config.repo
    }

    /// Returns the signer of a holder.
    pub fn signer(&self, holder: usize) -> Signer {
        let holder = &self.holders[holder];
        Signer::new(holder.kid, &holder.secret, self.repo())
    }

    /// Wraps a holder's secret once more, as `keys/<kid>/<number>`.
    ///
    /// # Errors
    /// When the store fails.
    pub fn write_protector(
        &self,
        store: &dyn Store,
        holder: usize,
        number: u32,
        credential: &Credential,
    ) -> Result<(), RepoError> {
        let Holder { kid, secret, .. } = &self.holders[holder];
        let protector = make_protector(self.repo(), *kid, secret, credential, CHEAP, Some("a hint".into()))?;
        create_new(store, &ObjectName::Protector(*kid, number), protector.encode(), "a key")
    }

    /// Writes a holder's grant with what is true now.
    ///
    /// # Errors
    /// When the store fails.
    pub fn write_grant(&self, store: &dyn Store, holder: usize, number: u64) -> Result<(), RepoError> {
        let Holder {
            kid,
            secret,
            label,
            roles,
        } = &self.holders[holder];
        let admin = self.signer(0);
        let row = |holder: &Holder| KidRow {
            kid: holder.kid,
            grant_key: grant::grant_key(&holder.secret, self.repo()),
            label: holder.label.clone(),
        };
        let is_admin = roles & role::ADMIN != 0;
        let grant = Grant {
            issuer: admin.kid(),
            created: host::now(),
            roles: *roles,
            repo: *self.repo(),
            config_sequence: self.config.sequence,
            admin_keys: vec![admin.public_key()],
            epochs: vec![self.secrets.clone()],
            label: Some(label.clone()),
            kid_table: if is_admin {
                self.holders.iter().map(row).collect()
            } else {
                Vec::new()
            },
        };
        let sealed = grant.encode(
            kid,
            number,
            &grant::grant_key(secret, self.repo()),
            &admin,
            host::random(),
        );
        create_new(store, &ObjectName::Grant(*kid, number), sealed, "a grant")
    }

    fn write_config(&self, store: &dyn Store) -> Result<(), RepoError> {
        let name = ObjectName::Config(self.config.sequence);
        let sealed = self.config.encode(&self.signer(self.config_signer));
        create_new(store, &name, sealed, "the configuration")
    }

    /// Publishes the next configuration.
    ///
    /// # Errors
    /// When the store fails.
    pub fn change_config(&mut self, store: &dyn Store, change: impl FnOnce(&mut Config)) -> Result<(), RepoError> {
        self.change_config_as(store, 0, change)
    }

    /// Publishes the next configuration, signed by any holder.
    ///
    /// # Errors
    /// When the store fails.
    pub fn change_config_as(
        &mut self,
        store: &dyn Store,
        signer: usize,
        change: impl FnOnce(&mut Config),
    ) -> Result<(), RepoError> {
        let previous = self.config.encode(&self.signer(self.config_signer));
        self.config_signer = signer;
        self.config.previous = Some(Repo::object_hash(&previous));
        self.config.sequence += 1;
        self.config.created = host::now();
        change(&mut self.config);
        self.write_config(store)
    }

    /// Adds a holder who may back up and read; the admin's grant is written anew, since it lists all holders.
    ///
    /// # Errors
    /// When the store fails.
    pub fn add_writer(&mut self, store: &dyn Store, label: &str, credential: &Credential) -> Result<(), RepoError> {
        let holder = Holder {
            kid: KeyId(host::random()),
            secret: Secret::new(host::random()),
            label: label.into(),
            roles: role::WRITE | role::READ_META | role::READ_DATA,
        };
        let key = writer_key(self.repo(), &holder, self.config.sequence + 1);
        self.holders.push(holder);
        let last = self.holders.len() - 1;
        self.change_config(store, |config| config.writers.push(key))?;
        self.write_protector(store, last, 0, credential)?;
        self.write_grant(store, last, 0)?;
        self.write_grant(store, 0, self.config.sequence)
    }
}

fn writer_key(repo: &RepoId, holder: &Holder, from_config: u64) -> WriterKey {
    WriterKey {
        kid: holder.kid,
        public_key: Signer::new(holder.kid, &holder.secret, repo).public_key(),
        roles: holder.roles,
        from_config,
        revoked_at: None,
        chain_end: None,
    }
}
