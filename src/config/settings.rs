//! What a run means: the settings that decide its weights, by which a checkpoint knows its run.

use super::{Config, Options};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Options that decide no weight: where data lie and how bad rows are treated (the data have a fingerprint of their own),
/// the preset (what it sets is there), and how often a run is looked at and kept.
const FREE: [&str; 9] = [
    "dataset",
    "skip-bad-rows",
    "preset",
    "epochs",
    "eval-every",
    "eval-rows",
    "early-stop",
    "checkpoint-every",
    "keep-checkpoints",
];

/// Names and values of all settings that decide the weights of a run, resolved, as a person writes them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Settings(BTreeMap<String, String>);

impl Settings {
    /// Of a run.
    pub fn of(config: &Config) -> Self {
        let options = config.to_options();
        let rows = Options::table().into_iter().filter(|row| !FREE.contains(&row.key.as_str()));
        Self(rows.filter_map(|row| Some((row.key.clone(), options.show(&row.key)?))).collect())
    }

    /// Of the text of a `config.toml`, by which version 0.1.0 knew its runs. Keys that are not known now are kept out.
    pub fn from_toml(text: &str) -> Self {
        let table: toml::Table = text.parse().unwrap_or_default();
        let mut settings = BTreeMap::new();
        for row in Options::table().into_iter().filter(|row| !FREE.contains(&row.key.as_str())) {
            let Some(value) = table.get(&row.key) else { continue };
            let written = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            // Through the option's own type, so that 1 and 1.0 are the same; what is no value of it stays as it is.
            let mut options = Options::default();
            let read = options.set(&row.key, &written).ok().and_then(|()| options.show(&row.key));
            settings.insert(row.key, read.unwrap_or(written));
        }
        Self(settings)
    }

    /// What differs in `now`, one phrase per setting: `lr 0.001 in the checkpoint, 0.003 now`. A setting that a
    /// checkpoint does not have came with a later version; it then has the value of the arithmetic before there was one.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let before = |key: &str| {
            let old = || match key {
                "loss-scale" => Some("1".to_owned()),
                "norm-eps" => Some("1e-5".to_owned()),
                _ => Options::table().into_iter().find(|row| row.key == key)?.default,
            };
            self.0.get(key).cloned().or_else(old)
        };
        let nothing = || "unset".to_owned();
        let changed = now.0.iter().filter_map(|(key, value)| {
            let before = before(key);
            let phrase =
                || format!("{key} {} in the checkpoint, {value} now", before.clone().unwrap_or_else(nothing));
            (before.as_ref() != Some(value)).then(phrase)
        });
        let gone = self.0.iter().filter(|(key, _)| !now.0.contains_key(*key));
        let gone = gone.filter(|(key, value)| before(key).as_ref() == Some(value) && !is_default(key, value));
        changed
            .chain(gone.map(|(key, value)| format!("{key} {value} in the checkpoint, unset now")))
            .collect()
    }
}

/// Whether leaving a setting out means this value.
fn is_default(key: &str, value: &str) -> bool {
    matches!((key, value), ("loss-scale", "1") | ("norm-eps", "1e-5"))
        || Options::table().iter().any(|row| row.key == key && row.default.as_deref() == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_compared_by_what_they_mean() {
        let old = Settings::from_toml(
            "# Resolved by sae 0.1.0\nk = 3\nlr = 1\nsteps = 9\nkeep-checkpoints = 1\nfuture = 1\n",
        );
        let new = Settings::from_toml(
            "k = 3\nlr = 1.0\nsteps = 9\nloss-scale = 1.0\nnorm-eps = 1e-5\nkeep-checkpoints = 7\neval-every = 2\nl1 = 0.0\n",
        );
        assert_eq!(old.differences(&new), [""; 0]);
        assert_eq!(new.differences(&old), [""; 0]);
        let other = Settings::from_toml("k = 4\nlr = 0.003\nsteps = 9\nloss-scale = 2.0\nepochs = 3\n");
        assert_eq!(
            old.differences(&other),
            [
                "k 3 in the checkpoint, 4 now",
                "loss-scale 1 in the checkpoint, 2 now",
                "lr 1 in the checkpoint, 0.003 now"
            ]
        );
        assert_eq!(
            other.differences(&old).last().map(String::as_str),
            Some("loss-scale 2 in the checkpoint, unset now")
        );
    }
}
