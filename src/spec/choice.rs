//! Closed sets of words, as a person writes them.

/// A word out of a fixed set: what an option or a file may say.
pub trait Choice: Copy + 'static {
    /// All of the set, in the order in which help lists them.
    const ALL: &'static [Self];

    /// The word.
    fn name(self) -> &'static str;

    /// What it means, in one sentence.
    fn about(self) -> &'static str;

    /// The member that `word` names.
    ///
    /// # Errors
    /// A sentence that names the words there are.
    fn from_name(word: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().copied().find(|choice| choice.name() == word);
        found.ok_or_else(|| {
            let all: Vec<&str> = Self::ALL.iter().map(|choice| choice.name()).collect();
            format!("`{word}` is not one of {}", all.join(", "))
        })
    }
}

/// Declares an enum that is a [`Choice`]: each variant with its word, which is also its name in files.
macro_rules! choices {
    ($(#[$outer:meta])* pub enum $name:ident { $($(#[doc = $about:literal])* $variant:ident = $word:literal,)* }) => {
        $(#[$outer])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[doc = $about])* #[serde(rename = $word)] $variant,)*
        }

        impl $crate::spec::Choice for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),*];

            fn name(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            fn about(self) -> &'static str {
                match self { $(Self::$variant => concat!($($about),*).trim_ascii(),)* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad($crate::spec::Choice::name(*self))
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(word: &str) -> std::result::Result<Self, String> {
                $crate::spec::Choice::from_name(word)
            }
        }
    };
}
pub(crate) use choices;
