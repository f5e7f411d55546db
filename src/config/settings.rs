//! What a run means: the settings that decide its weights, by which a checkpoint knows its run.

use super::{Config, Options};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Options that decide no weight: where data lie and how bad rows are treated (the data have a fingerprint of their own),
/// the preset (what it sets is there), and how often a run is looked at and kept.
const FREE: [&str; 19] = [
    "group-by",
    "groups",
    "groups-reversed",
    "splits",
    "dataset",
    "ids",
    "index",
    "transpose",
    "stored-as",
    "skip-bad-rows",
    "preset",
    "epochs",
    "eval-every",
    "eval-rows",
    "final-rows",
    "early-stop",
    "checkpoint-every",
    "keep-checkpoints",
    "tensorboard",
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

    /// What differs in `now`, one phrase per setting: `lr 0.001 in the checkpoint, 0.003 now`. A setting that one of the
    /// two does not have has there the value of the arithmetic before there was one: it came with a later version.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let names: BTreeSet<&String> = self.0.keys().chain(now.0.keys()).collect();
        let differing = names.into_iter().filter_map(|name| {
            let [before, now] =
                [self, now].map(|settings| settings.0.get(name).cloned().or_else(|| unset(name)));
            let shown = |value: Option<String>| value.unwrap_or_else(|| "unset".into());
            (before != now).then(|| format!("{name} {} in the checkpoint, {} now", shown(before), shown(now)))
        });
        differing.collect()
    }
}

/// What leaving a setting out means.
fn unset(name: &str) -> Option<String> {
    match name {
        "loss-scale" => Some("1".into()),
        "norm-eps" => Some("1e-5".into()),
        _ => Options::table().into_iter().find(|row| row.key == name)?.default,
    }
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
        assert_eq!(other.differences(&old)[1], "loss-scale 2 in the checkpoint, 1 now");
        assert_eq!(
            other.differences(&old).last().map(String::as_str),
            Some("lr 0.003 in the checkpoint, 1 now")
        );
    }
}
