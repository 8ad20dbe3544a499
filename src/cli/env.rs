//! Everything that comes from outside of the arguments: environment variables, the configuration file, passwords and key
//! files. Read here and nowhere else.

use super::error::Failure;
use crate::edge::store::location::Identity;
use crate::edge::{host, process};
use crate::pure::base::Kind;
use crate::pure::crypto::paper::{self, Reading};
use crate::repo::open::Credential;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Longest password and key file, bytes.
const SECRET_BYTES_MAX: u64 = 64 << 10;
/// Name of the credential that systemd hands over (`LoadCredential=larder-password:…`).
const SYSTEMD_CREDENTIAL: &str = "larder-password";

/// The environment variables that larder reads (the AWS library reads its own).
#[derive(Debug, Default)]
pub struct Environment {
    pub repo: Option<OsString>,
    pub password: Option<Secret>,
    pub password_file: Option<PathBuf>,
    pub password_command: Option<String>,
    pub key_file: Option<PathBuf>,
    pub key_command: Option<String>,
    pub cache_dir: Option<PathBuf>,
    pub config: Option<PathBuf>,
    pub profile: Option<String>,
    pub s3_endpoint: Option<String>,
    /// For the other place of `repo replicate`.
    pub to: OtherPlace,
    credentials_directory: Option<PathBuf>,
    cache_home: Option<PathBuf>,
    config_home: Option<PathBuf>,
    home: Option<PathBuf>,
}

/// What the environment says of another place than that of the repository.
#[derive(Debug, Default)]
pub struct OtherPlace {
    pub repo: Option<OsString>,
    pub s3_endpoint: Option<String>,
    pub region: Option<String>,
    pub identity: Option<Identity>,
    pub password: Option<Secret>,
    pub password_file: Option<PathBuf>,
    pub password_command: Option<String>,
    pub key_file: Option<PathBuf>,
    pub key_command: Option<String>,
}

/// Bytes that are wiped when dropped and never printed.
pub struct Secret(Zeroizing<Vec<u8>>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Environment {
    /// Reads the environment of this process. Empty variables count as absent.
    ///
    /// # Errors
    /// When one that must be text is none.
    pub fn read() -> Result<Environment, Failure> {
        let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let path = |name: &str| var(name).map(PathBuf::from);
        let text = |name: &str| match var(name).map(OsString::into_string) {
            None => Ok(None),
            Some(Ok(value)) => Ok(Some(value)),
            Some(Err(_)) => Err(Failure::usage(format!("{name} is not valid text"))),
        };
        Ok(Environment {
            repo: var("LARDER_REPO"),
            password: var("LARDER_PASSWORD").map(|value| Secret(Zeroizing::new(value.into_vec()))),
            password_file: path("LARDER_PASSWORD_FILE"),
            password_command: text("LARDER_PASSWORD_COMMAND")?,
            key_file: path("LARDER_KEY_FILE"),
            key_command: text("LARDER_KEY_COMMAND")?,
            cache_dir: path("LARDER_CACHE_DIR"),
            config: path("LARDER_CONFIG"),
            profile: text("LARDER_PROFILE")?,
            s3_endpoint: text("AWS_ENDPOINT_URL_S3")?,
            to: OtherPlace {
                repo: var("LARDER_TO_REPO"),
                s3_endpoint: text("LARDER_TO_S3_ENDPOINT")?,
                region: text("LARDER_TO_AWS_REGION")?,
                password: var("LARDER_TO_PASSWORD").map(|value| Secret(Zeroizing::new(value.into_vec()))),
                password_file: path("LARDER_TO_PASSWORD_FILE"),
                password_command: text("LARDER_TO_PASSWORD_COMMAND")?,
                key_file: path("LARDER_TO_KEY_FILE"),
                key_command: text("LARDER_TO_KEY_COMMAND")?,
                identity: match (
                    text("LARDER_TO_AWS_ACCESS_KEY_ID")?,
                    text("LARDER_TO_AWS_SECRET_ACCESS_KEY")?,
                ) {
                    (Some(id), Some(secret)) => Some(Identity::Keys {
                        id,
                        secret: Zeroizing::new(secret),
                        token: text("LARDER_TO_AWS_SESSION_TOKEN")?.map(Zeroizing::new),
                    }),
                    (None, None) => None,
                    _ => {
                        return Err(Failure::usage(
                            "LARDER_TO_AWS_ACCESS_KEY_ID and LARDER_TO_AWS_SECRET_ACCESS_KEY go together, and one is missing",
                        ));
                    }
                },
            },
            credentials_directory: path("CREDENTIALS_DIRECTORY"),
            // The XDG specification: relative ones are to be ignored.
            cache_home: path("XDG_CACHE_HOME").filter(|path| path.is_absolute()),
            config_home: path("XDG_CONFIG_HOME").filter(|path| path.is_absolute()),
            home: path("HOME").filter(|path| path.is_absolute()),
        })
    }

    /// Returns where the cache is when nothing else is said. Services often have no HOME; then it is `/var/cache/larder` for
    /// root, and for others it must be named.
    ///
    /// # Errors
    /// When there is no such place.
    pub fn default_cache_dir(&self) -> Result<PathBuf, Failure> {
        let base = self
            .cache_home
            .clone()
            .or_else(|| self.home.as_ref().map(|home| home.join(".cache")));
        match base {
            Some(base) => Ok(base.join("larder")),
            None if rustix::process::geteuid().is_root() => Ok(PathBuf::from("/var/cache/larder")),
            None => Err(Failure::usage("there is no place for the cache: HOME is not set")
                .with_hint("give --cache-dir or LARDER_CACHE_DIR")),
        }
    }

    fn default_config(&self) -> Option<PathBuf> {
        let base = self
            .config_home
            .clone()
            .or_else(|| self.home.as_ref().map(|home| home.join(".config")))?;
        Some(base.join("larder").join("config.toml"))
    }

    /// Returns the systemd credential, if there is one.
    fn systemd_credential(&self) -> Option<PathBuf> {
        self.credentials_directory
            .as_ref()
            .map(|dir| dir.join(SYSTEMD_CREDENTIAL))
            .filter(|path| path.exists())
    }
}

/// One profile of the configuration file. Relative paths are relative to the file.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Profile {
    pub repository: Option<String>,
    pub password_file: Option<PathBuf>,
    pub password_command: Option<String>,
    pub key_file: Option<PathBuf>,
    pub key_command: Option<String>,
    pub cache_dir: Option<PathBuf>,
    pub cache_size: Option<String>,
    pub s3_endpoint: Option<String>,
    pub s3_path_style: Option<bool>,
    pub aws_profile: Option<String>,
    #[serde(default)]
    pub insecure_http: bool,
    pub memory: Option<String>,
    pub limit_upload: Option<String>,
    pub limit_download: Option<String>,
    #[serde(default)]
    pub exclude: Vec<String>,
    #[serde(default)]
    pub exclude_file: Vec<PathBuf>,
    #[serde(default)]
    pub tag: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    #[serde(default)]
    profile: BTreeMap<String, Profile>,
}

/// Reads the profile that was asked for, or `default` if there is one.
///
/// # Errors
/// When the file cannot be read, is writable for others, or does not hold the profile.
pub fn read_profile(config: Option<&Path>, name: Option<&str>, environment: &Environment) -> Result<Profile, Failure> {
    let named = config.or(environment.config.as_deref());
    let name = name.or(environment.profile.as_deref());
    let path = match named {
        Some(path) => path.to_owned(),
        None => match environment.default_config() {
            Some(path) if path.exists() => path,
            _ if name.is_some() => {
                return Err(
                    Failure::usage("a profile was asked for, but there is no configuration file")
                        .with_hint("give --config or LARDER_CONFIG"),
                );
            }
            _ => return Ok(Profile::default()),
        },
    };
    let shown = path.display();
    let mut file =
        File::open(&path).map_err(|error| Failure::local(format!("cannot read the configuration {shown}"), &error))?;
    refuse_foreign(&file, &path)?;
    let mut text = String::new();
    file.read_to_string(&mut text)
        .map_err(|error| Failure::local(format!("cannot read the configuration {shown}"), &error))?;
    let config: ConfigFile = toml::from_str(&text).map_err(|error| {
        let mut failure = Failure::usage(format!("the configuration {shown} is not right"));
        failure.causes.push(error.to_string().trim_end().to_owned());
        failure
    })?;
    let wanted = name.unwrap_or("default");
    let mut profile = match config.profile.get(wanted) {
        Some(profile) => profile.clone(),
        None if name.is_none() => Profile::default(),
        None => {
            let known: Vec<&str> = config.profile.keys().map(String::as_str).collect();
            return Err(
                Failure::usage(format!("the configuration {shown} has no profile {wanted:?}"))
                    .with_hint(format!("it has: {}", known.join(", "))),
            );
        }
    };
    let base = path.parent().unwrap_or(Path::new("")).to_owned();
    let files = [
        &mut profile.password_file,
        &mut profile.key_file,
        &mut profile.cache_dir,
    ];
    for file in files.into_iter().flatten().chain(&mut profile.exclude_file) {
        *file = base.join(&*file);
    }
    Ok(profile)
}

/// Whoever can write the configuration can have commands run as the user who reads it.
fn refuse_foreign(file: &File, path: &Path) -> Result<(), Failure> {
    let shown = path.display();
    let status = file
        .metadata()
        .map_err(|error| Failure::local(format!("cannot look at the configuration {shown}"), &error))?;
    let me = rustix::process::geteuid().as_raw();
    if status.uid() != me && status.uid() != 0 {
        return Err(
            Failure::usage(format!("the configuration {shown} belongs to another user"))
                .with_hint("it can have commands run as you: make it yours, or choose another"),
        );
    }
    if status.mode() & 0o022 != 0 {
        return Err(
            Failure::usage(format!("the configuration {shown} can be written by others"))
                .with_hint(format!("chmod go-w {shown}")),
        );
    }
    Ok(())
}

/// Where a password or key comes from.
#[derive(Debug)]
enum SecretSource<'a> {
    Value(&'a [u8]),
    File(&'a Path),
    Command(&'a str),
    KeyFile(&'a Path),
    KeyCommand(&'a str),
    Systemd(PathBuf),
    Terminal,
}

/// What the command line says about secrets.
#[derive(Clone, Copy, Debug, Default)]
pub struct SecretArgs<'a> {
    pub password_file: Option<&'a Path>,
    pub password_command: Option<&'a str>,
    pub key_file: Option<&'a Path>,
    pub key_command: Option<&'a str>,
}

/// Chooses the source: arguments before environment before profile before systemd before asking.
fn choose<'a>(
    args: SecretArgs<'a>,
    environment: &'a Environment,
    profile: &'a Profile,
) -> Result<SecretSource<'a>, Failure> {
    let pick = |named: SecretArgs<'a>| {
        let file = named.password_file.map(SecretSource::File);
        file.or(named.password_command.map(SecretSource::Command))
            .or(named.key_file.map(SecretSource::KeyFile))
            .or(named.key_command.map(SecretSource::KeyCommand))
    };
    let from_environment = || {
        let value = environment
            .password
            .as_ref()
            .map(|secret| SecretSource::Value(&secret.0));
        value.or_else(|| {
            pick(SecretArgs {
                password_file: environment.password_file.as_deref(),
                password_command: environment.password_command.as_deref(),
                key_file: environment.key_file.as_deref(),
                key_command: environment.key_command.as_deref(),
            })
        })
    };
    let from_profile = || {
        pick(SecretArgs {
            password_file: profile.password_file.as_deref(),
            password_command: profile.password_command.as_deref(),
            key_file: profile.key_file.as_deref(),
            key_command: profile.key_command.as_deref(),
        })
    };
    pick(args)
        .or_else(from_environment)
        .or_else(from_profile)
        .or_else(|| environment.systemd_credential().map(SecretSource::Systemd))
        .or_else(|| can_ask().then_some(SecretSource::Terminal))
        .ok_or_else(|| {
            Failure::new(Kind::Auth, "there is no password, and no terminal to ask on")
                .with_hint("give LARDER_PASSWORD, --password-file, --password-command, --key-file or --key-command")
        })
}

fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Gets the password or key that opens a repository.
///
/// # Errors
/// When there is none or it cannot be read.
pub fn credential(
    args: SecretArgs<'_>,
    environment: &Environment,
    profile: &Profile,
    confirm: bool,
) -> Result<Credential, Failure> {
    match choose(args, environment, profile)? {
        SecretSource::Value(value) => password(Zeroizing::new(value.to_vec()), "LARDER_PASSWORD"),
        SecretSource::File(path) => password_file(path),
        SecretSource::Systemd(path) => password_file(&path),
        SecretSource::Command(command) => {
            let line = process::first_line_of(command)
                .map_err(|error| secret_failure("the password command failed", &error))?;
            password(line, "the output of the password command")
        }
        SecretSource::KeyFile(path) => key_file(path),
        SecretSource::KeyCommand(command) => key_command(command),
        SecretSource::Terminal if confirm => ask_new(),
        SecretSource::Terminal => ask("password: ").and_then(|entered| password(entered, "what was entered")),
    }
}

/// Gets the password or key that opens a repository in another place. Those of the first one do not count.
///
/// # Errors
/// When there is none or it cannot be read.
pub fn other_credential(args: SecretArgs<'_>, place: &OtherPlace, profile: &Profile) -> Result<Credential, Failure> {
    let environment = Environment {
        password: place.password.as_ref().map(|secret| Secret(secret.0.clone())),
        password_file: place.password_file.clone(),
        password_command: place.password_command.clone(),
        key_file: place.key_file.clone(),
        key_command: place.key_command.clone(),
        ..Environment::default()
    };
    credential(args, &environment, profile, false)
}

fn secret_failure(message: impl Into<String>, error: &io::Error) -> Failure {
    let mut failure = Failure::new(Kind::Auth, message);
    failure.causes.push(error.to_string());
    failure
}

fn read_secret(path: &Path, what: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let failed = |error: io::Error| secret_failure(format!("cannot read the {what} {}", path.display()), &error);
    // A vector that grows would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_BYTES_MAX as usize + 1));
    let file = File::open(path).map_err(failed)?;
    file.take(SECRET_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > SECRET_BYTES_MAX {
        return Err(Failure::new(
            Kind::Auth,
            format!("the {what} {} is far too long to be one", path.display()),
        ));
    }
    Ok(bytes)
}

fn password(bytes: Zeroizing<Vec<u8>>, from: &str) -> Result<Credential, Failure> {
    if bytes.is_empty() {
        return Err(Failure::new(Kind::Auth, format!("the password is empty ({from})")));
    }
    if std::str::from_utf8(&bytes).is_err() {
        return Err(Failure::new(Kind::Auth, format!("the password is not UTF-8 ({from})")));
    }
    // Whoever has only the paper types it where a password is asked for.
    if let Some(key) = paper(&bytes, from)? {
        return Ok(key);
    }
    Ok(Credential::Password(bytes))
}

/// Reads a password: the first line of a file.
///
/// # Errors
/// When the file cannot be read or the line is empty.
pub fn password_file(path: &Path) -> Result<Credential, Failure> {
    let bytes = read_secret(path, "password file")?;
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    password(Zeroizing::new(line.to_vec()), &path.display().to_string())
}

fn key_file(path: &Path) -> Result<Credential, Failure> {
    let bytes = read_secret(path, "key file")?;
    let shown = path.display().to_string();
    match Credential::from_key_file(&bytes) {
        Some(key) => Ok(key),
        None => paper(&bytes, &shown)?.ok_or_else(|| {
            Failure::new(
                Kind::Auth,
                format!("{shown} is not a key file: it must hold 64 hexadecimal digits, or a paper key"),
            )
        }),
    }
}

/// Runs a command that prints a key.
///
/// # Errors
/// When it does not succeed, or prints something else.
pub fn key_command(command: &str) -> Result<Credential, Failure> {
    let printed = process::output_of(command).map_err(|error| secret_failure("the key command failed", &error))?;
    printed_key(&printed).map(Credential::KeyCommand).ok_or_else(|| {
        let message = match printed.len() {
            0 => "the key command printed nothing",
            _ => "the key command must print 32 random bytes, or 64 hexadecimal digits, and nothing else",
        };
        Failure::new(Kind::Auth, message).with_hint("a password is taken from a command with --password-command")
    })
}

fn printed_key(printed: &[u8]) -> Option<crate::pure::crypto::Secret> {
    // Hardly any 32 random bytes are all letters, digits and the like: that is a password, and too easily guessed for a key.
    if printed.len() == 32 && !printed.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ') {
        return crate::pure::crypto::Secret::from_slice(printed);
    }
    match Credential::from_key_file(printed.strip_suffix(b"\r\n").unwrap_or(printed)) {
        Some(Credential::KeyFile(secret)) => Some(secret),
        _ => None,
    }
}

/// Reads a paper key, if the text is meant to be one.
fn paper(text: &[u8], from: &str) -> Result<Option<Credential>, Failure> {
    match paper::read(text) {
        Reading::Key(secret) => Ok(Some(Credential::KeyFile(secret))),
        Reading::Other => Ok(None),
        Reading::Mistyped(mistake) => {
            let mut failure = Failure::new(Kind::Auth, format!("the paper key is mistyped ({from})"))
                .with_hint("compare it with the paper, group by group; groups are counted after larder1, row by row");
            failure.causes.push(mistake.to_string());
            Err(failure)
        }
    }
}

/// Reads a paper key from a file, or from standard input up to an empty line or the end.
///
/// # Errors
/// When it cannot be read, is mistyped, or is none.
pub fn paper_key(path: Option<&Path>) -> Result<Credential, Failure> {
    let (bytes, from) = match path {
        Some(path) => (read_secret(path, "paper key")?, path.display().to_string()),
        None => (typed_lines()?, "standard input".to_owned()),
    };
    paper(&bytes, &from)?.ok_or_else(|| {
        Failure::new(Kind::Auth, format!("this is no paper key ({from})"))
            .with_hint("it begins with larder1, and 58 letters and digits follow")
    })
}

fn typed_lines() -> Result<Zeroizing<Vec<u8>>, Failure> {
    // A vector that grows would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_BYTES_MAX as usize));
    let mut one = Zeroizing::new([0u8; 1]);
    let mut stdin = io::stdin().lock();
    while bytes.len() < SECRET_BYTES_MAX as usize {
        let read = stdin
            .read(&mut *one)
            .map_err(|error| secret_failure("cannot read the paper key", &error))?;
        if read == 0 || (one[0] == b'\n' && bytes.last() == Some(&b'\n')) {
            break;
        }
        bytes.push(one[0]);
    }
    Ok(bytes)
}

fn ask(prompt: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let entered = rpassword::prompt_password(prompt).map_err(|error| match error.kind() {
        io::ErrorKind::Interrupted => Failure::new(Kind::Interrupted, "interrupted"),
        _ => secret_failure("cannot ask for the password", &error),
    })?;
    Ok(Zeroizing::new(entered.into_bytes()))
}

/// Asks for a new password, twice.
///
/// # Errors
/// When there is no terminal, or what was entered differs.
pub fn ask_new() -> Result<Credential, Failure> {
    if !can_ask() {
        return Err(Failure::usage("there is no new password, and no terminal to ask on")
            .with_hint("give --new-password-file or --new-key-file"));
    }
    let first = ask("new password: ")?;
    if first != ask("the same once more: ")? {
        return Err(Failure::new(
            Kind::Auth,
            "the two passwords differ; nothing was changed",
        ));
    }
    password(first, "what was entered")
}

/// Makes a key file that only this user may read, durable before it is used.
///
/// # Errors
/// When something is there already, or it cannot be written.
pub fn make_key_file(path: &Path) -> Result<Credential, Failure> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => Failure::usage(format!("{} exists already; it was left alone", path.display()))
            .with_hint("use it with --key-file, or choose another name"),
        _ => secret_failure(format!("cannot write the key file {}", path.display()), &error),
    };
    let secret = Zeroizing::new(host::random::<32>());
    let text = Zeroizing::new(format!("{}\n", &*Zeroizing::new(crate::pure::id::to_hex(&*secret))));
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(failed)?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(failed)?;
    Ok(Credential::KeyFile(crate::pure::crypto::Secret::new(*secret)))
}

/// Makes a path absolute without following symbolic links, where that is possible. A slash at the end is kept only where it
/// matters: after a symbolic link, to say that what it points to is meant.
///
/// # Errors
/// When a directory on the way cannot be found.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    let bytes = path.as_os_str().as_bytes();
    let trimmed_length = bytes.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    if trimmed_length == 0 && !bytes.is_empty() {
        return Ok(PathBuf::from("/"));
    }
    let had_slash = trimmed_length < bytes.len();
    let trimmed = Path::new(OsStr::from_bytes(&bytes[..trimmed_length]));
    // What `..` means depends on links, so up to there they have to be followed.
    let goes_up = trimmed
        .components()
        .any(|component| component == std::path::Component::ParentDir);
    let whole = if !goes_up {
        std::path::absolute(trimmed)?
    } else {
        match (trimmed.parent(), trimmed.file_name()) {
            (Some(parent), Some(name)) => {
                let parent = if parent.as_os_str().is_empty() {
                    Path::new(".")
                } else {
                    parent
                };
                parent.canonicalize()?.join(name)
            }
            _ => trimmed.canonicalize()?,
        }
    };
    if had_slash && std::fs::symlink_metadata(&whole).is_ok_and(|status| status.file_type().is_symlink()) {
        let mut text = whole.into_os_string();
        text.push("/");
        return Ok(PathBuf::from(text));
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn config(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (dir, path)
    }

    #[test]
    fn a_profile_is_read_and_its_files_lie_beside_it() {
        let text = "[profile.default]\nrepository = '/r'\n[profile.web]\npassword-file = 'pw'\ntag = ['a=b']\nexclude = ['*.tmp']\n";
        let (dir, path) = config(text, 0o600);
        let environment = Environment::default();
        let profile = read_profile(Some(&path), Some("web"), &environment).unwrap();
        assert_eq!(profile.password_file, Some(dir.path().join("pw")));
        assert_eq!(profile.tag, ["a=b"]);
        assert_eq!(
            read_profile(Some(&path), None, &environment)
                .unwrap()
                .repository
                .as_deref(),
            Some("/r")
        );
        assert!(
            read_profile(Some(&path), Some("nope"), &environment)
                .unwrap_err()
                .hint
                .unwrap()
                .contains("web")
        );
    }

    #[test]
    fn a_configuration_that_others_can_write_is_refused() {
        for mode in [0o620, 0o602] {
            let (_dir, path) = config("", mode);
            let failure = read_profile(Some(&path), None, &Environment::default()).unwrap_err();
            assert!(failure.message.contains("written by others"), "{failure:?}");
        }
    }

    #[test]
    fn unknown_settings_are_refused() {
        let (_dir, path) = config("[profile.default]\npasword-file = 'x'\n", 0o600);
        assert!(read_profile(Some(&path), None, &Environment::default()).is_err());
    }

    #[test]
    fn the_first_line_of_a_password_file_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pw");
        for (text, expected) in [
            ("secret\nmore\n", "secret"),
            ("secret", "secret"),
            ("secret \r\n", "secret "),
        ] {
            std::fs::write(&path, text).unwrap();
            let Credential::Password(found) = password_file(&path).unwrap() else {
                panic!("not a password")
            };
            assert_eq!(*found, expected.as_bytes());
        }
        std::fs::write(&path, "\n").unwrap();
        assert_eq!(password_file(&path).err().unwrap().kind, Kind::Auth);
    }

    #[test]
    fn a_new_key_file_is_private_opens_and_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let Credential::KeyFile(made) = make_key_file(&path).unwrap() else {
            panic!("not a key")
        };
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let Credential::KeyFile(read) = key_file(&path).unwrap() else {
            panic!("not a key")
        };
        assert!(made == read);
        assert_eq!(make_key_file(&path).err().unwrap().kind, Kind::Usage);
        assert!(Credential::from_key_file(&std::fs::read(&path).unwrap()).is_some());
    }

    #[test]
    fn roots_become_absolute_without_following_links() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        std::fs::create_dir(base.join("real")).unwrap();
        std::os::unix::fs::symlink("real", base.join("link")).unwrap();
        assert_eq!(absolute(&base.join("link")).unwrap(), base.join("link"));
        assert_eq!(
            absolute(&base.join("link/")).unwrap().as_os_str().as_bytes().last(),
            Some(&b'/')
        );
        assert_eq!(
            absolute(&base.join("real/")).unwrap().as_os_str(),
            base.join("real").as_os_str()
        );
        assert_eq!(absolute(&base.join("link/../real")).unwrap(), base.join("real"));
        assert_eq!(absolute(Path::new("//")).unwrap(), Path::new("/"));
    }
}
