//! A key on paper: 32 bytes as text that people copy, with a checksum that finds what they mistype (format-spec chapter on the
//! configuration, "Paper keys").
//!
//! Bech32m (BIP 350) with the prefix `larder`: letters and digits that are not mistaken for each other, case that does not
//! matter, and a code that notices every mistake in up to four characters. Where one character is wrong the code says which.

use super::Secret;
use zeroize::Zeroizing;

/// What the text begins with, and what the checksum covers first.
const PREFIX: &[u8] = b"larder";
/// Five bits each; 1, b, i and o are left out.
const ALPHABET: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";
/// BIP 350.
const CHECK: u32 = 0x2bc8_30a3;
/// Characters after `larder1`: 32 bytes, and the checksum.
const DATA: usize = 52;
const LENGTH: usize = DATA + 6;
/// Characters in a group, and groups in a line, on paper.
const GROUP: usize = 4;
const LINE: usize = 5;

/// What a text turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub enum Reading {
    Key(Secret),
    /// It is meant to be a paper key, but is mistyped.
    Mistyped(Mistake),
    /// Something else, such as a password.
    Other,
}

/// Where the mistake is. Groups of four characters are counted from 1, as they stand on the paper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    #[error("{found:?} in group {group} is in no paper key: there is no 1, b, i or o in one")]
    Character { found: char, group: usize },
    #[error("it has {found} characters after larder1, not {LENGTH}: some are missing or too many")]
    Length { found: usize },
    #[error("a character in group {group} is wrong")]
    Group { group: usize },
    #[error("two or more characters are wrong")]
    Checksum,
}

/// Writes a key as lines of groups. The first line begins with `larder1`.
pub fn write(secret: &Secret) -> Zeroizing<String> {
    let mut symbols = Zeroizing::new([0u8; LENGTH]);
    for (at, symbol) in symbols.iter_mut().take(DATA).enumerate() {
        *symbol = five_bits(secret.expose(), at);
    }
    let check = checksum(&symbols[..]) ^ CHECK;
    for (at, symbol) in symbols[DATA..].iter_mut().enumerate() {
        *symbol = (check >> (5 * (5 - at)) & 31) as u8;
    }
    // Room for all of it at once: a text that grows would leave copies behind.
    let mut text = Zeroizing::new(String::with_capacity(4 * LENGTH));
    text.push_str("larder1");
    for (group, characters) in symbols.chunks(GROUP).enumerate() {
        text.push_str(if group > 0 && group % LINE == 0 {
            "\n        "
        } else {
            " "
        });
        characters
            .iter()
            .for_each(|symbol| text.push(char::from(ALPHABET[usize::from(*symbol)])));
    }
    text
}

/// Reads what was typed. Case, spaces, hyphens, line breaks and lines that begin with `#` do not matter, and `larder1` may be
/// left out.
pub fn read(text: &[u8]) -> Reading {
    let Ok(text) = std::str::from_utf8(text) else {
        return Reading::Other;
    };
    // As long as the text, so that it does not grow.
    let mut typed = Zeroizing::new(Vec::with_capacity(text.len()));
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        let kept = line
            .chars()
            .filter(|character| !character.is_whitespace() && *character != '-');
        typed.extend(kept.map(|character| character.to_ascii_lowercase()));
    }
    let has_prefix = typed.iter().copied().take(7).eq("larder1".chars());
    let characters = if has_prefix { &typed[7..] } else { &typed[..] };
    // A password may begin with our prefix or be as long; both at once are no accident.
    let is_meant = has_prefix && (LENGTH - 10..=LENGTH + 10).contains(&characters.len());
    match decode(characters) {
        Ok(secret) => Reading::Key(secret),
        Err(mistake) if is_meant => Reading::Mistyped(mistake),
        Err(_) => Reading::Other,
    }
}

fn decode(characters: &[char]) -> Result<Secret, Mistake> {
    if characters.len() != LENGTH {
        return Err(Mistake::Length {
            found: characters.len(),
        });
    }
    let mut symbols = Zeroizing::new([0u8; LENGTH]);
    for (at, found) in characters.iter().enumerate() {
        let place = ALPHABET.iter().position(|known| char::from(*known) == *found);
        symbols[at] = place.ok_or(Mistake::Character {
            found: *found,
            group: at / GROUP + 1,
        })? as u8;
    }
    if checksum(&symbols[..]) != CHECK {
        return Err(locate(&mut symbols));
    }
    // 52 characters are 260 bits: the last four are zero in what we write.
    if symbols[DATA - 1] & 15 != 0 {
        return Err(Mistake::Checksum);
    }
    let mut bytes = Zeroizing::new([0u8; 32]);
    for (at, symbol) in symbols[..DATA].iter().enumerate() {
        for bit in 0..5 {
            let place = 5 * at + bit;
            if place < 256 {
                bytes[place / 8] |= (symbol >> (4 - bit) & 1) << (7 - place % 8);
            }
        }
    }
    Ok(Secret::new(*bytes))
}

/// Finds the one character whose change makes the checksum right. The code has distance five, so no other change of one or two
/// characters does.
fn locate(symbols: &mut [u8; LENGTH]) -> Mistake {
    for at in 0..LENGTH {
        let typed = symbols[at];
        for other in 0..32 {
            symbols[at] = other;
            if checksum(&symbols[..]) == CHECK {
                symbols[at] = typed;
                return Mistake::Group { group: at / GROUP + 1 };
            }
        }
        symbols[at] = typed;
    }
    Mistake::Checksum
}

/// The n-th five bits of a key, which ends in zero bits.
fn five_bits(bytes: &[u8; 32], n: usize) -> u8 {
    (0..5).fold(0, |value, bit| {
        let place = 5 * n + bit;
        let byte = bytes.get(place / 8).copied().unwrap_or(0);
        value << 1 | (byte >> (7 - place % 8) & 1)
    })
}

/// The polynomial of BIP 173 over the prefix and the symbols.
fn checksum(symbols: &[u8]) -> u32 {
    checksum_of(PREFIX, symbols)
}

fn checksum_of(prefix: &[u8], symbols: &[u8]) -> u32 {
    const GENERATOR: [u32; 5] = [0x3b6a_57b2, 0x2650_8e6d, 0x1ea1_19fa, 0x3d42_33dd, 0x2a14_62b3];
    let high = prefix.iter().map(|byte| byte >> 5);
    let low = prefix.iter().map(|byte| byte & 31);
    let all = high.chain([0]).chain(low).chain(symbols.iter().copied());
    all.fold(1u32, |sum, value| {
        let top = sum >> 25;
        let next = (sum & 0x01ff_ffff) << 5 ^ u32::from(value);
        (0..5).fold(next, |next, bit| {
            if top >> bit & 1 == 1 {
                next ^ GENERATOR[bit]
            } else {
                next
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret() -> Secret {
        Secret::new(std::array::from_fn(|at| at as u8))
    }

    fn one_line() -> String {
        write(&secret()).split_whitespace().collect()
    }

    #[test]
    fn the_published_strings_have_the_right_checksum() {
        // BIP 350, valid and invalid.
        let sum = |text: &str| {
            let text = text.to_ascii_lowercase();
            let (prefix, data) = text.rsplit_once('1').unwrap();
            let symbols: Vec<u8> = data
                .bytes()
                .map(|byte| ALPHABET.iter().position(|known| *known == byte).unwrap() as u8)
                .collect();
            checksum_of(prefix.as_bytes(), &symbols)
        };
        for valid in [
            "A1LQFN3A",
            "a1lqfn3a",
            "an83characterlonghumanreadablepartthatcontainsthetheexcludedcharactersbioandnumber11sg7hg6",
            "abcdef1l7aum6echk45nj3s0wdvt2fg8x9yrzpqzd3ryx",
            "split1checkupstagehandshakeupstreamerranterredcaperredlc445v",
            "?1v759aa",
        ] {
            assert_eq!(sum(valid), CHECK, "{valid}");
        }
        for invalid in ["M1VUXWEZ", "a1lqfn3q"] {
            assert_ne!(sum(invalid), CHECK, "{invalid}");
        }
    }

    #[test]
    fn what_is_written_is_read_however_it_is_typed() {
        let text = write(&secret());
        assert_eq!(text.lines().count(), 3, "{text:?}");
        let line = one_line();
        assert_eq!(line.len(), 65);
        let spaced: String = line.chars().flat_map(|character| [character, ' ']).collect();
        let typed = [
            text.to_string(),
            line.clone(),
            line.to_uppercase(),
            spaced,
            format!("# of the machine in the cellar\n\n  {line}\r\n"),
            line["larder1".len()..].to_string(),
            line.replace("larder1", "larder1-"),
        ];
        for typed in typed {
            assert_eq!(read(typed.as_bytes()), Reading::Key(secret()), "{typed}");
        }
        for other in [[0; 32], [255; 32], [0x5a; 32]] {
            let other = Secret::new(other);
            assert_eq!(read(write(&other).as_bytes()), Reading::Key(other));
        }
    }

    #[test]
    fn one_wrong_character_is_found_and_named() {
        let line = one_line();
        for at in 7..65 {
            for replacement in ALPHABET {
                let mut typed = line.clone().into_bytes();
                if typed[at] == *replacement {
                    continue;
                }
                typed[at] = *replacement;
                let group = (at - 7) / GROUP + 1;
                assert_eq!(
                    read(&typed),
                    Reading::Mistyped(Mistake::Group { group }),
                    "{at} {replacement}"
                );
            }
        }
    }

    #[test]
    fn other_mistakes_are_never_taken_for_a_key() {
        let line = one_line();
        for at in 7..64 {
            let mut swapped = line.clone().into_bytes();
            swapped.swap(at, at + 1);
            if swapped != line.as_bytes() {
                assert!(matches!(read(&swapped), Reading::Mistyped(_)), "swapped at {at}");
            }
            let mut missing = line.clone();
            missing.remove(at);
            assert_eq!(
                read(missing.as_bytes()),
                Reading::Mistyped(Mistake::Length { found: 57 })
            );
            let mut wrong = line.clone();
            wrong.replace_range(at..at + 1, "o");
            let group = (at - 7) / GROUP + 1;
            assert_eq!(
                read(wrong.as_bytes()),
                Reading::Mistyped(Mistake::Character { found: 'o', group })
            );
        }
    }

    #[test]
    fn passwords_and_key_files_are_something_else() {
        let hexadecimal = "0123456789abcdef".repeat(4);
        let nearly = format!("larder1{}", "q".repeat(30));
        for text in ["", "correct horse", "larder1", "larder1234", &nearly, &hexadecimal] {
            assert_eq!(read(text.as_bytes()), Reading::Other, "{text}");
        }
        assert_eq!(read(&[0xff; 65]), Reading::Other);
        assert_eq!(read("ä".repeat(58).as_bytes()), Reading::Other);
    }
}
