//! The training options as flags, made from their table.

use crate::config::{OptionRow, Options};
use crate::spec::Choice;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser, ValueParser};
use clap::{Arg, ArgAction, ArgMatches, Command};

/// Options as they came on the command line.
#[derive(Debug, Clone, Default)]
pub struct Flags(pub Options);

fn help(row: &OptionRow) -> String {
    match row.defaults() {
        Some(defaults) => format!("{} [default: {defaults}]", row.help),
        None => row.help.to_owned(),
    }
}

fn argument(row: &OptionRow) -> Arg {
    let arg = Arg::new(row.key.clone()).long(row.key.clone()).help_heading(row.heading);
    let arg = arg.help(help(row));
    let arg = match row.short {
        Some(letter) => arg.short(letter),
        None => arg,
    };
    if row.switch.is_some() {
        return arg.action(ArgAction::SetTrue);
    }
    let arg = arg.allow_hyphen_values(row.range.is_some());
    // A value that may be left out.
    let arg = match row.place.strip_prefix("[=").and_then(|place| place.strip_suffix(']')) {
        Some(place) => {
            arg.value_name(place).num_args(0..=1).require_equals(true).default_missing_value("true")
        }
        None => arg.value_name(row.place),
    };
    match row.key.as_str() {
        "steps" => arg.conflicts_with("epochs"),
        _ => arg,
    }
    .value_parser(if row.words.is_empty() {
        let check = row.check;
        ValueParser::new(move |text: &str| check(text).map(|()| text.to_owned()))
    } else {
        ValueParser::new(words(&row.words))
    })
}

/// A flag of a grid: several values, separated by commas, where they are not of the data.
fn grid_argument(row: &OptionRow) -> Arg {
    let arg = argument(row);
    if row.switch.is_some() || row.heading == DATA {
        return arg;
    }
    let check = row.check;
    arg.value_parser(ValueParser::new(move |text: &str| {
        text.split(',').try_for_each(check).map(|()| text.to_owned())
    }))
}

/// Heading of the options whose values may hold commas.
const DATA: &str = "Data";

/// Options of a sweep: those that all runs have in common, and those with several values.
#[derive(Debug, Clone, Default)]
pub struct Grid {
    /// Common options.
    pub common: Options,
    /// Options with their values, in the order of the table.
    pub several: Vec<(String, Vec<String>)>,
}

impl clap::Args for Grid {
    fn augment_args(command: Command) -> Command {
        let rows = Options::table().into_iter();
        command.args(rows.flat_map(|row| [Some(grid_argument(&row)), opposite(&row)].into_iter().flatten()))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Grid {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut grid = Self::default();
        grid.update_from_arg_matches(matches)?;
        Ok(grid)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let wrong = |what: String| clap::Error::raw(clap::error::ErrorKind::InvalidValue, what);
        for row in Options::table() {
            let Some(text) = given(&row, matches) else { continue };
            let several = row.switch.is_none() && row.heading != DATA && text.contains(',');
            if several {
                self.several.push((row.key, text.split(',').map(str::to_owned).collect()));
            } else {
                self.common.set(&row.key, text).map_err(wrong)?;
            }
        }
        Ok(())
    }
}

/// What was given for an option.
fn given<'a>(row: &OptionRow, matches: &'a ArgMatches) -> Option<&'a str> {
    let key = row.key.as_str();
    match row.switch {
        Some(_) if matches.get_flag(key) => Some("true"),
        Some(off) if !off.is_empty() && matches.get_flag(off) => Some("false"),
        Some(_) => None,
        None => matches.get_one::<String>(key).map(String::as_str),
    }
}

fn words(words: &[(&'static str, &'static str)]) -> PossibleValuesParser {
    words.iter().map(|&(name, about)| PossibleValue::new(name).help(about)).collect::<Vec<_>>().into()
}

/// A parser of a flag's words.
pub fn choice<T: Choice + Send + Sync>() -> impl TypedValueParser<Value = T> {
    let all: Vec<_> = T::ALL.iter().map(|choice| (choice.name(), choice.about())).collect();
    words(&all).try_map(|word| T::from_name(&word))
}

/// The switch for the other way, where the row has one.
fn opposite(row: &OptionRow) -> Option<Arg> {
    let name = row.switch.filter(|name| !name.is_empty())?;
    let default = row.default.as_deref() == Some("false");
    let (help, default) = (format!("Not --{}", row.key), if default { " (the default)" } else { "" });
    let arg = Arg::new(name).long(name).help_heading(row.heading).action(ArgAction::SetTrue);
    Some(arg.help(format!("{help}{default}")).conflicts_with(row.key.clone()))
}

impl clap::Args for Flags {
    fn augment_args(command: Command) -> Command {
        let rows = Options::table().into_iter();
        command.args(rows.flat_map(|row| [Some(argument(&row)), opposite(&row)].into_iter().flatten()))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let wrong = |what: String| clap::Error::raw(clap::error::ErrorKind::InvalidValue, what);
        for row in Options::table() {
            if let Some(text) = given(&row, matches) {
                self.0.set(&row.key, text).map_err(wrong)?;
            }
        }
        Ok(())
    }
}
