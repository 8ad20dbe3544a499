//! The only place that prints. Results go to standard output, everything else to standard error.
//!
//! Names come from file systems and repositories, and terminals obey what they are sent, so everything that is not plainly
//! printable is escaped (catalogue X-group: terminal injection).

use super::args::Globals;
use super::error::{Failure, kind_name};
use crate::pure::base::Kind;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

/// Where and how to print.
#[derive(Clone)]
pub struct Output {
    pub json: bool,
    pub quiet: bool,
    verbose: u8,
    /// Whether a progress bar may be drawn.
    pub bars: bool,
    /// Whether JSON progress lines are wanted.
    pub json_progress: bool,
    stdout: Arc<Mutex<io::BufWriter<io::Stdout>>>,
}

impl Output {
    /// Prepares for what was asked for.
    pub fn new(globals: &Globals) -> Output {
        Output {
            json: globals.json,
            quiet: globals.quiet,
            verbose: globals.verbose,
            bars: io::stderr().is_terminal() && !(globals.quiet || globals.no_progress || globals.json),
            json_progress: globals.json_progress,
            stdout: Arc::new(Mutex::new(io::BufWriter::with_capacity(64 << 10, io::stdout()))),
        }
    }

    /// Prints a line of a result.
    ///
    /// # Errors
    /// When the output is closed or full.
    pub fn line(&self, text: impl AsRef<str>) -> Result<(), Failure> {
        writeln!(self.stdout.lock(), "{}", text.as_ref()).map_err(|error| Failure::output(&error))
    }

    /// Prints a line for people: nothing with `--json` or `--quiet`.
    ///
    /// # Errors
    /// When the output is closed or full.
    pub fn say(&self, text: impl AsRef<str>) -> Result<(), Failure> {
        if self.json || self.quiet {
            Ok(())
        } else {
            self.line(text)
        }
    }

    /// Prints one JSON object as a line, at once.
    ///
    /// # Errors
    /// When the output is closed or full.
    pub fn json(&self, value: &Value) -> Result<(), Failure> {
        let mut stdout = self.stdout.lock();
        writeln!(stdout, "{value}")
            .and_then(|()| stdout.flush())
            .map_err(|error| Failure::output(&error))
    }

    /// Prints one of many JSON objects.
    ///
    /// # Errors
    /// When the output is closed or full.
    pub fn json_row(&self, value: &Value) -> Result<(), Failure> {
        writeln!(self.stdout.lock(), "{value}").map_err(|error| Failure::output(&error))
    }

    /// Lends the standard output to something that writes bytes.
    pub fn with_raw<T>(&self, write: impl FnOnce(&mut dyn Write) -> T) -> T {
        write(&mut *self.stdout.lock())
    }

    /// Whether standard output is a terminal.
    pub fn is_terminal(&self) -> bool {
        io::stdout().is_terminal()
    }

    /// Pushes out what waits.
    ///
    /// # Errors
    /// When the output is closed or full.
    pub fn flush(&self) -> Result<(), Failure> {
        self.stdout.lock().flush().map_err(|error| Failure::output(&error))
    }

    /// Tells about something that is not as it should be, on standard error. JSON has it in the result instead.
    pub fn warn(&self, text: impl AsRef<str>) {
        if !self.json {
            complain(&format!("warning: {}", printable(text.as_ref().as_bytes())));
        }
    }

    /// Tells something that is good to know, on standard error.
    pub fn note(&self, text: impl AsRef<str>) {
        if !self.json && !self.quiet {
            complain(&format!("note: {}", printable(text.as_ref().as_bytes())));
        }
    }

    /// Tells what is only of interest with `-v`.
    pub fn detail(&self, text: impl AsRef<str>) {
        if self.verbose > 0 {
            self.note(text);
        }
    }

    /// How many of a long list of problems are shown.
    pub fn shown_max(&self) -> usize {
        if self.verbose > 0 { usize::MAX } else { 20 }
    }

    /// Prints an error and returns its exit code. A closed output ends quietly.
    pub fn failure(&self, failure: &Failure) -> u8 {
        print_failure(failure, self.json);
        failure.exit_code()
    }
}

/// Writes a line to standard error; when that fails there is nobody to tell.
fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Prints an error, as text or as one JSON object.
pub fn print_failure(failure: &Failure, json: bool) {
    if *failure == Failure::output(&io::ErrorKind::BrokenPipe.into()) {
        return;
    }
    let message: Vec<&str> = failure
        .doing
        .iter()
        .chain([&failure.message])
        .map(String::as_str)
        .collect();
    if json {
        let object = json!({
            "type": "error",
            "version": 1,
            "kind": kind_name(failure.kind),
            "exit_code": failure.exit_code(),
            "message": message.join(": "),
            "causes": failure.causes,
            "hint": failure.hint,
        });
        complain(&object.to_string());
        return;
    }
    let parts: Vec<&str> = message
        .into_iter()
        .chain(failure.causes.iter().map(String::as_str))
        .collect();
    let mut text = format!("larder: {}", printable_lines(&parts.join(": ")));
    if let Some(hint) = &failure.hint {
        let _ = write!(text, "\nhint: {}", printable_lines(hint));
    }
    complain(&text);
}

/// Makes a panic tell what to do about it.
pub fn explain_panics(json: bool) {
    std::panic::set_hook(Box::new(move |info| {
        let mut failure = Failure::new(Kind::Internal, "internal error").with_hint(
            "this is a defect of larder: please report it with this message and the command line (without secrets)",
        );
        let text = info.payload_as_str().unwrap_or("no message");
        let place = info
            .location()
            .map_or_else(String::new, |place| format!(" at {}:{}", place.file(), place.line()));
        failure.causes.push(format!("{text}{place}"));
        print_failure(&failure, json);
    }));
}

/// Escapes everything that a terminal could take for a command or that hides text: control characters, bytes that are not
/// UTF-8, marks of writing direction. A backslash is doubled, so that the result is unambiguous.
pub fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for part in bytes.utf8_chunks() {
        part.valid()
            .chars()
            .for_each(|character| push_printable(&mut text, character));
        for byte in part.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// As [`printable`], for our own words: line ends and backslashes stay.
fn printable_lines(words: &str) -> String {
    let mut text = String::with_capacity(words.len());
    for character in words.chars() {
        match character {
            '\n' | '\\' => text.push(character),
            character => push_printable(&mut text, character),
        }
    }
    text
}

fn push_printable(text: &mut String, character: char) {
    match character {
        '\\' => text.push_str("\\\\"),
        '\n' => text.push_str("\\n"),
        '\t' => text.push_str("\\t"),
        '\r' => text.push_str("\\r"),
        '\u{0}'..='\u{1f}' | '\u{7f}' => {
            let _ = write!(text, "\\x{:02x}", character as u32);
        }
        '\u{80}'..='\u{9f}'
        | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{feff}' => {
            let _ = write!(text, "\\u{{{:x}}}", character as u32);
        }
        character => text.push(character),
    }
}

/// Puts a path into a JSON object: text under `name`, and when that loses something the bytes as hex under `name_hex`.
pub fn put_path(object: &mut Map<String, Value>, name: &str, path: &[u8]) {
    object.insert(
        name.to_owned(),
        Value::String(String::from_utf8_lossy(path).into_owned()),
    );
    if std::str::from_utf8(path).is_err() {
        object.insert(format!("{name}_hex"), Value::String(crate::pure::id::to_hex(path)));
    }
}

/// Makes a JSON object with a path in it.
pub fn with_path(mut value: Value, path: &[u8]) -> Value {
    if let Value::Object(object) = &mut value {
        put_path(object, "path", path);
    }
    value
}

/// Writes a count with its noun: `1 file`, `2 files`, `12 345 files`.
pub fn count(number: u64, one: &str, many: &str) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        // Five digits and more are easier to read in groups.
        if digits.len() > 4 && at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    format!("{text} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_command_a_terminal() {
        assert_eq!(printable(b"a\x1b[31mb\xff\n\\"), "a\\x1b[31mb\\xff\\n\\\\");
        assert_eq!(
            printable("grün \u{202e}gpj.exe \u{9b}".as_bytes()),
            "grün \\u{202e}gpj.exe \\u{9b}"
        );
    }

    #[test]
    fn counts_have_the_right_noun_and_groups() {
        assert_eq!(count(1, "file", "files"), "1 file");
        assert_eq!(count(4321, "file", "files"), "4321 files");
        assert_eq!(count(1_234_567, "file", "files"), "1\u{202f}234\u{202f}567 files");
    }

    #[test]
    fn paths_that_are_not_text_keep_their_bytes_in_json() {
        assert_eq!(
            with_path(json!({}), b"/a\xff"),
            json!({"path": "/a\u{fffd}", "path_hex": "2f61ff"})
        );
        assert_eq!(with_path(json!({}), b"/a"), json!({"path": "/a"}));
    }
}
