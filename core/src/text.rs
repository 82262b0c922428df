//! Text from people: bounded, and without invisible characters, so that it is safe in a log, a tag and a terminal.

use std::fmt;

use icu_properties::props::{DefaultIgnorableCodePoint, GeneralCategory, VariationSelector};
use icu_properties::{CodePointMapData, CodePointSetData};
use serde::{Deserialize, Serialize};

use crate::Invalid;

/// A principal's reason for access: 1 to 500 characters, no invisible ones, no leading or trailing blanks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Justification(String);

impl Justification {
    /// The longest justification, in characters.
    pub const MAX_CHARS: usize = 500;

    /// Parses a justification.
    ///
    /// # Errors
    /// Empty or blank text, text past [`Self::MAX_CHARS`], invisible characters.
    pub fn new(text: &str) -> Result<Self, Invalid> {
        let text = text.trim();
        if text.is_empty() {
            return Err(Invalid::new("justification", "is empty", "say in a few words why access is needed"));
        }
        free_text("justification", text, Self::MAX_CHARS).map(|()| Self(text.to_owned()))
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A name of a policy, a principal or a host: 1 to 63 of `a-z A-Z 0-9 . _ -`, the first a letter or digit.
///
/// The characters are those that a SPIFFE path segment allows, so that a name can stand in a certificate
/// (SPIFFE-ID specification, section 2.2).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The longest name, in bytes.
    pub const MAX_BYTES: usize = 63;

    /// Parses a name.
    ///
    /// # Errors
    /// Empty, too long, or a character outside the set.
    pub fn new(text: &str) -> Result<Self, Invalid> {
        let remedy = "use 1 to 63 of a-z A-Z 0-9 . _ - with a letter or digit first";
        if text.is_empty() {
            return Err(Invalid::new("name", "is empty", remedy));
        }
        if text.len() > Self::MAX_BYTES {
            return Err(Invalid::new("name", format!("has {} bytes", text.len()), remedy));
        }
        if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return Err(Invalid::new("name", "does not start with a letter or digit", remedy));
        }
        if let Some(bad) = text.chars().find(|c| !(c.is_ascii_alphanumeric() || "._-".contains(*c))) {
            return Err(Invalid::new("name", format!("contains {bad:?}"), remedy));
        }
        Ok(Self(text.to_owned()))
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Checks other text that a person may have written and that Postern stores or logs.
///
/// # Errors
/// More than `max_chars` characters, or a character that is invisible.
pub fn free_text(field: &str, text: &str, max_chars: usize) -> Result<(), Invalid> {
    let chars = text.chars().count();
    if chars > max_chars {
        let problem = format!("has {chars} characters");
        return Err(Invalid::new(field, problem, format!("use at most {max_chars}")));
    }
    match text.chars().find(|c| is_invisible(*c)) {
        Some(bad) => {
            let problem = format!("contains the invisible character {}", bad.escape_unicode());
            Err(Invalid::new(field, problem, "use one line of printable text"))
        }
        None => Ok(()),
    }
}

/// The characters that an error repeats of a text that it was sent.
pub const MAX_REPEATED: usize = 80;

/// Returns a text in quotation marks, as an error repeats it: at most [`MAX_REPEATED`] characters, invisible ones escaped.
pub fn repeated(text: &str) -> String {
    format!("\"{}\"", clipped(text, MAX_REPEATED))
}

/// Returns the first `max_chars` characters of a value, invisible ones escaped, with `…` if there are more. The cost depends on
/// `max_chars` alone once the value writes its text.
pub fn clipped(value: &(impl fmt::Display + ?Sized), max_chars: usize) -> String {
    let mut clip = Clip { text: String::new(), left: max_chars };
    // Ends early with an error once the text is full; what is there counts.
    if fmt::Write::write_fmt(&mut clip, format_args!("{value}")).is_err() {
        clip.text.push('…');
    }
    clip.text
}

/// A text that takes a number of characters and refuses the rest.
struct Clip {
    text: String,
    left: usize,
}

impl fmt::Write for Clip {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            let escaped = if is_invisible(c) { c.escape_unicode().to_string() } else { c.to_string() };
            let length = escaped.chars().count();
            if length > self.left {
                self.left = 0;
                return Err(fmt::Error);
            }
            self.left -= length;
            self.text.push_str(&escaped);
        }
        Ok(())
    }
}

/// Reports whether a reader cannot see the character, or sees others in another order because of it: controls (the general
/// category Cc), format characters (Cf: joiners, marks of direction, tags), separators of lines and paragraphs (Zl, Zp), and
/// fillers (Default_Ignorable_Code_Point). With them two texts that differ look the same (Unicode TR 36, 2.3 and 3.1). The selectors of
/// variations are none of these: emoji need them.
pub fn is_invisible(c: char) -> bool {
    use GeneralCategory::{Control, Format, LineSeparator, ParagraphSeparator};
    let category = CodePointMapData::<GeneralCategory>::new().get(c);
    matches!(category, Control | Format | LineSeparator | ParagraphSeparator)
        || (CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c) && !is_variation_selector(c))
}

/// Reports whether the character chooses the look of the one before it, as of an emoji, and shows as nothing itself.
pub(crate) fn is_variation_selector(c: char) -> bool {
    CodePointSetData::new::<VariationSelector>().contains(c)
}

macro_rules! text_traits {
    ($type:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl std::str::FromStr for $type {
            type Err = Invalid;
            fn from_str(text: &str) -> Result<Self, Invalid> {
                Self::new(text)
            }
        }
        impl TryFrom<String> for $type {
            type Error = Invalid;
            fn try_from(text: String) -> Result<Self, Invalid> {
                Self::new(&text)
            }
        }
        impl From<$type> for String {
            fn from(text: $type) -> String {
                text.0
            }
        }
    };
}
pub(crate) use text_traits;

text_traits!(Justification);
text_traits!(Name);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_justification_is_one_printable_line() {
        assert_eq!(Justification::new("  fix disk ").unwrap().as_str(), "fix disk");
        for bad in ["", "   ", "a\nb", "a\u{1b}[31m", "a\u{202e}b", &"x".repeat(10_240)] {
            assert!(Justification::new(bad).is_err(), "{bad:?}");
        }
        // A control, the separators of lines and paragraphs, and a sample of each block of format characters.
        for bad in [
            '\0',
            '\u{7f}',
            '\u{85}',
            '\u{ad}',
            '\u{600}',
            '\u{61c}',
            '\u{6dd}',
            '\u{70f}',
            '\u{180e}',
            '\u{200b}',
            '\u{200d}',
            '\u{200e}',
            '\u{2028}',
            '\u{2029}',
            '\u{202e}',
            '\u{2060}',
            '\u{2064}',
            '\u{2069}',
            '\u{206f}',
            '\u{feff}',
            '\u{fff9}',
            '\u{3164}',
            '\u{115f}',
            '\u{34f}',
            '\u{110bd}',
            '\u{13430}',
            '\u{1bca0}',
            '\u{1d173}',
            '\u{e0001}',
            '\u{e007f}',
        ] {
            let invalid = Justification::new(&format!("fix{bad}disk")).unwrap_err();
            assert!(invalid.problem.contains("invisible"), "{invalid}");
        }
        assert!(Justification::new("Größe 漢字 עברית 👍 ☎\u{fe0f}").is_ok(), "text of every script");
        assert!(Justification::new(&"é".repeat(500)).is_ok(), "the limit counts characters, not bytes");
    }

    #[test]
    fn i10_an_error_repeats_the_beginning_of_a_text() {
        assert_eq!(repeated("lb"), "\"lb\"");
        let long = repeated(&"é".repeat(10_240));
        assert_eq!(long, format!("\"{}…\"", "é".repeat(MAX_REPEATED)));
        assert_eq!(clipped("abc", 3), "abc", "all of it fits");
        assert_eq!(clipped("abcd", 3), "abc…");
        assert_eq!(repeated("a\n\u{202e}b"), "\"a\\u{a}\\u{202e}b\"");
        assert!(repeated(&"\u{202e}".repeat(1_000)).chars().count() <= MAX_REPEATED + 3);
    }

    #[test]
    fn a_name_fits_a_certificate_path() {
        assert!(Name::new("ops.team_1-a").is_ok());
        for bad in ["", "-a", "a b", "a/b", "ä", "a:b", &"x".repeat(64)] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
        }
    }
}
