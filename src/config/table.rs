//! The one table of training options: name, type, placeholder, help, heading, default and range, each written once.
//! The struct [`Options`], the flags of `sae train`, the keys of a configuration file, their help, the checks of ranges
//! and the book's chapter of options are all made from it.

use super::{NumberOr, Options, PrefixList, Preset, RowMemory};
use crate::data::{AxisPicks, BadRows};
use crate::spec::Choice;

/// A type that an option can have.
pub trait OptionValue: Sized {
    /// The words it can be, with what they mean; empty where it is not a set of words.
    fn words() -> Vec<(&'static str, &'static str)> {
        vec![]
    }

    /// Reads it as a person writes it.
    ///
    /// # Errors
    /// What is wrong with the text.
    fn read(text: &str) -> Result<Self, String>;

    /// As a person writes it.
    fn show(&self) -> String;

    /// The number, where it is a real one, for the check of its range.
    fn real(&self) -> Option<f64> {
        None
    }
}

impl<T: Choice> OptionValue for T {
    fn words() -> Vec<(&'static str, &'static str)> {
        T::ALL.iter().map(|choice| (choice.name(), choice.about())).collect()
    }

    fn read(text: &str) -> Result<Self, String> {
        T::from_name(text)
    }

    fn show(&self) -> String {
        self.name().into()
    }
}

macro_rules! plain_values {
    ($($type:ty),*) => { $(
        impl OptionValue for $type {
            fn read(text: &str) -> Result<Self, String> {
                text.parse().map_err(|e: <$type as std::str::FromStr>::Err| e.to_string())
            }

            fn show(&self) -> String {
                self.to_string()
            }
        }
    )* };
}
plain_values!(u64, u32, usize, bool, String, AxisPicks, BadRows, PrefixList, RowMemory);

impl OptionValue for f64 {
    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|e: std::num::ParseFloatError| e.to_string())
    }

    fn show(&self) -> String {
        // `{:?}` writes 1e-8 with its exponent, and 5 as 5.0.
        let text = format!("{self:?}");
        text.strip_suffix(".0").unwrap_or(&text).into()
    }

    fn real(&self) -> Option<f64> {
        Some(*self)
    }
}

impl<T: OptionValue + std::str::FromStr> OptionValue for NumberOr<T> {
    fn read(text: &str) -> Result<Self, String> {
        text.parse()
    }

    fn show(&self) -> String {
        match self {
            Self::Number(number) => number.show(),
            Self::Word(word) => word.name().into(),
        }
    }

    fn real(&self) -> Option<f64> {
        match self {
            Self::Number(number) => number.real(),
            Self::Word(_) => None,
        }
    }
}

/// One option.
#[derive(Debug, Clone)]
pub struct OptionRow {
    /// Name of the flag, and of the key in a configuration file.
    pub key: String,
    /// One letter for it.
    pub short: Option<char>,
    /// Group in the help.
    pub heading: &'static str,
    /// What stands for its value in the help.
    pub place: &'static str,
    /// A switch takes no value; `Some` names the flag for `false`, if it has one.
    pub switch: Option<&'static str>,
    /// What it does.
    pub help: &'static str,
    /// Words that it can be, and what they mean.
    pub words: Vec<(&'static str, &'static str)>,
    /// The default of all presets that do not set another.
    pub default: Option<String>,
    /// The default in words where it depends on the data: for a preset by name, or for all (empty name).
    pub depends: &'static [(&'static str, &'static str)],
    /// Least and largest number.
    pub range: Option<(f64, f64)>,
    /// Checks a text.
    pub check: fn(&str) -> std::result::Result<(), String>,
}

impl OptionRow {
    /// The default of a preset, as help shows it; `None` where there is none.
    fn default_of(&self, preset: Preset) -> Option<String> {
        let in_words =
            |name: &str| self.depends.iter().find(|(n, _)| *n == name).map(|(_, text)| (*text).to_owned());
        in_words(preset.name())
            .or_else(|| preset.options(0).show(&self.key))
            .or_else(|| in_words(""))
            .or_else(|| self.default.clone())
    }

    /// The defaults of all presets in one line: that of the default preset first, then those that differ.
    pub fn defaults(&self) -> Option<String> {
        let mut text = self.default_of(Preset::DEFAULT)?;
        // Values that differ, each with its presets, in the order of the presets.
        let mut others: Vec<(String, Vec<&str>)> = vec![];
        for &preset in Preset::ALL {
            let Some(value) = self.default_of(preset).filter(|value| *value != text) else { continue };
            match others.iter_mut().find(|(other, _)| *other == value) {
                Some((_, presets)) => presets.push(preset.name()),
                None => others.push((value, vec![preset.name()])),
            }
        }
        for (value, presets) in others {
            let all = presets.len() + 1 == Preset::ALL.len();
            let names = if all { "other presets".to_owned() } else { presets.join(", ") };
            text.push_str(&format!("; {names}: {value}"));
        }
        Some(text)
    }
}

/// The book's chapter of options, in Markdown.
pub fn options_chapter() -> String {
    let mut text = String::from(
        "# Options\n\nThe options of `sae train`, as flags and as keys of a TOML file that `--config` reads (`latents = 4096`, `lr-schedule = \"cosine\"`).\n\n<!-- Made from the table in src/config/options.rs: SAE_WRITE_DOCS=1 cargo test --test docs -->\n",
    );
    let cell = |text: &str| text.replace('|', "\\|");
    let mut heading = "";
    for row in Options::table() {
        if row.heading != heading {
            heading = row.heading;
            text.push_str(&format!("\n## {heading}\n\n| option | does | default |\n| --- | --- | --- |\n"));
        }
        let flag = match (row.switch, row.short) {
            (Some(off), _) if !off.is_empty() => format!("`--{}`, `--{off}`", row.key),
            (Some(_), _) => format!("`--{}`", row.key),
            (None, Some(letter)) => format!("`-{letter}`, `--{} {}`", row.key, row.place),
            (None, None) if row.place.starts_with('[') => format!("`--{}{}`", row.key, row.place),
            (None, None) => format!("`--{} {}`", row.key, row.place),
        };
        let mut does = row.help.to_owned();
        for (word, about) in &row.words {
            does.push_str(&format!("<br>`{word}`: {about}"));
        }
        let default = row.defaults().unwrap_or_default();
        text.push_str(&format!("| {flag} | {} | {} |\n", cell(&does), cell(&default)));
    }
    text
}

/// Declares [`Options`] and its table.
macro_rules! options {
    ($($heading:literal { $(
        $(#[doc = $help:literal])+ $(#[short($short:literal)])?
        $field:ident: $type:ty $(, $place:literal)? $(, default $default:expr)? $(, depends $depends:expr)?
        $(, range $low:expr, $high:expr)? $(, switch $off:literal)?;
    )* })*) => {
        /// What a person may set, all of it optional; the same keys in a configuration file (`latents = 4096`,
        /// `lr-schedule = "cosine"`) as on the command line.
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields)]
        pub struct Options {
            /// Data files, named by position on the command line.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub data: Option<Vec<PathBuf>>,
            $($(
                $(#[doc = $help])+
                #[serde(default, skip_serializing_if = "Option::is_none")]
                pub $field: Option<$type>,
            )*)*
        }

        /// The defaults that neither a preset nor the data decide.
        pub(super) struct Defaults { $($($(
            pub $field: options!(@type $type, $default),
        )?)*)* }

        pub(super) const DEFAULTS: Defaults = Defaults { $($($( $field: $default, )?)*)* };

        impl Options {
            /// The table, in the order of the help.
            pub fn table() -> Vec<OptionRow> {
                fn row<T: OptionValue>(heading: &'static str, field: &str, help: &'static str) -> OptionRow {
                    OptionRow {
                        key: field.replace('_', "-"),
                        short: None,
                        heading,
                        place: "",
                        switch: None,
                        help: help.trim_ascii(),
                        words: T::words(),
                        default: None,
                        depends: &[],
                        range: None,
                        check: |text| T::read(text).map(drop),
                    }
                }
                vec![$($({
                    let row = row::<$type>($heading, stringify!($field), concat!($($help),+));
                    OptionRow {
                        $(short: Some($short),)?
                        $(place: $place,)?
                        $(default: { let value: $type = $default; Some(value.show()) },)?
                        $(depends: &$depends,)?
                        $(range: Some(($low, $high)),)?
                        $(switch: Some($off),)?
                        ..row
                    }
                }),*),*]
            }

            /// Sets the option `key` from text.
            ///
            /// # Errors
            /// No such option, or a text that is not a value of it.
            pub fn set(&mut self, key: &str, text: &str) -> std::result::Result<(), String> {
                match key.replace('-', "_").as_str() {
                    $($(stringify!($field) => self.$field = Some(OptionValue::read(text)?),)*)*
                    _ => return Err(format!("there is no option {key}")),
                }
                Ok(())
            }

            /// The value of the option `key` as text, where it is set.
            pub fn show(&self, key: &str) -> Option<String> {
                match key.replace('-', "_").as_str() {
                    $($(stringify!($field) => self.$field.as_ref().map(OptionValue::show),)*)*
                    _ => None,
                }
            }

            /// The number that the option `key` is, where it is set and real.
            pub fn real(&self, key: &str) -> Option<f64> {
                match key.replace('-', "_").as_str() {
                    $($(stringify!($field) => self.$field.as_ref().and_then(OptionValue::real),)*)*
                    _ => None,
                }
            }

            /// Everything set in `self`, then what only `base` sets.
            pub fn or(self, base: Self) -> Self {
                // One way of giving the length hides the other.
                let (steps, epochs) = match (self.steps, self.epochs) {
                    (None, None) => (base.steps, base.epochs),
                    given => given,
                };
                Self {
                    data: self.data.or(base.data),
                    $($($field: self.$field.or(base.$field),)*)*
                }
                .with_length(steps, epochs)
            }

            fn with_length(self, steps: Option<u64>, epochs: Option<f64>) -> Self {
                Self { steps, epochs, ..self }
            }
        }
    };
    (@type $type:ty, $default:expr) => { $type };
}
pub(super) use options;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_defaults_in_the_table_are_those_of_a_run() {
        for &preset in Preset::ALL {
            let options = Options { preset: Some(preset), ..Options::default() };
            let settled = Config::resolve(&options, 300, 4000).unwrap().to_options();
            let mut compared = 0;
            for row in Options::table() {
                let in_words = row.depends.iter().any(|(name, _)| [preset.name(), ""].contains(name));
                let Some(shown) = row.default_of(preset).filter(|_| !in_words) else { continue };
                if row.key == "preset" || ["auto", "full"].contains(&shown.as_str()) {
                    continue;
                }
                let Some(settled) = settled.show(&row.key) else { continue };
                // The gain is kept as float32.
                let as_f32 =
                    |text: &str| text.parse::<f64>().map_or(text.to_owned(), |v| (v as f32).to_string());
                assert_eq!(as_f32(&settled), as_f32(&shown), "{preset}: {}", row.key);
                compared += 1;
            }
            assert!(compared > 20, "{preset}: {compared}");
        }
    }

    #[test]
    fn every_option_can_be_set_by_its_key_and_is_a_key_of_the_file() {
        for row in Options::table() {
            let sample = if row.key == "index" { "0=33,1=2" } else { "3" };
            let text = row.words.first().map(|(word, _)| *word).or(row.default.as_deref()).unwrap_or(sample);
            let mut options = Options::default();
            options.set(&row.key, text).unwrap();
            assert_eq!(options.show(&row.key).as_deref(), Some(text), "{}", row.key);
            let file = toml::to_string(&options).unwrap();
            assert!(file.starts_with(&format!("{} = ", row.key)), "{file}");
            assert_eq!(toml::from_str::<Options>(&file).unwrap(), options);
            assert!(!row.help.is_empty() && (row.switch.is_some() || !row.place.is_empty()), "{}", row.key);
        }
        assert!(Options::default().set("no-such", "1").is_err());
    }
}
