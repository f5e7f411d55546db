//! Files with a dataset per id: which part of the paths is the id, or which readings there are.

use std::collections::{BTreeMap, HashSet};
use std::sync::LazyLock;

use rayon::prelude::*;

use super::file::Dataset;
use super::scan::group_of;

/// What the datasets of one record, or of one file, are called, as opposed to an id: representations, splits, models.
/// Names are compared part by part, without numbers.
const FIELD_WORDS: &[&str] = &[
    "activation",
    "activations",
    "acts",
    "array",
    "attention",
    "attentions",
    "attn",
    "avg",
    "block",
    "blocks",
    "bos",
    "cls",
    "contacts",
    "coords",
    "coordinates",
    "data",
    "decoder",
    "emb",
    "embed",
    "embedding",
    "embeddings",
    "embs",
    "encoder",
    "feat",
    "feats",
    "feature",
    "features",
    "head",
    "heads",
    "hidden",
    "hiddens",
    "input",
    "inputs",
    "label",
    "labels",
    "latent",
    "latents",
    "layer",
    "layers",
    "logits",
    "mask",
    "matrix",
    "mean",
    "means",
    "output",
    "outputs",
    "pae",
    "pca",
    "per",
    "plddt",
    "pool",
    "pooled",
    "pooler",
    "repr",
    "representation",
    "representations",
    "residue",
    "residues",
    "score",
    "scores",
    "sequence",
    "state",
    "states",
    "target",
    "targets",
    "tok",
    "token",
    "tokens",
    "tsne",
    "umap",
    "values",
    "vec",
    "vector",
    "vectors",
    "vae",
    // Splits.
    "train",
    "training",
    "test",
    "testing",
    "val",
    "valid",
    "validation",
    "dev",
    "holdout",
    "heldout",
    "eval",
    "query",
    "queries",
    "reference",
    "references",
    "gallery",
    "anchor",
    "anchors",
    "positive",
    "positives",
    "negative",
    "negatives",
    // Models.
    "ankh",
    "bert",
    "esm",
    "esm1b",
    "esm1v",
    "esm2",
    "esm3",
    "esmc",
    "gemma",
    "gpt",
    "llama",
    "protbert",
    "protrans",
    "prostt5",
    "prott5",
    "prottrans",
    "seqvec",
    "t5",
    "unirep",
    "xlnet",
];

/// Datasets up to which equal lengths mean several sets of the same rows, not records.
const FEW: usize = 16;

/// Whether `name` is what a representation, a split or a model is called.
pub(super) fn is_field(name: &str) -> bool {
    static WORDS: LazyLock<HashSet<&[u8]>> =
        LazyLock::new(|| FIELD_WORDS.iter().map(|word| word.as_bytes()).collect());
    // Files of 100,000 ids come here: no memory is taken for each, and the shortest word has two letters.
    let is_word = |part: &[u8]| {
        let mut lower = [0u8; 16];
        (2..=lower.len()).contains(&part.len()) && {
            let lower = &mut lower[..part.len()];
            lower.copy_from_slice(part);
            lower.make_ascii_lowercase();
            WORDS.contains(&*lower)
        }
    };
    name.as_bytes().split(|c| c.is_ascii() && !c.is_ascii_alphanumeric()).any(|part| {
        let digits = part.iter().rev().take_while(|c| c.is_ascii_digit()).count();
        // No word ends in two digits.
        (digits < 2 && is_word(part)) || (digits > 0 && is_word(&part[..part.len() - digits]))
    })
}

/// Whether `name` cannot name a record by itself: a number, or a range of residues.
fn is_number(name: &str) -> bool {
    name.chars().all(|c| c.is_ascii_digit() || "-_.:".contains(c))
}

/// Whether `name` is a range, as in `1-90`.
fn is_range(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    name.split_once(['-', '_', ':']).is_some_and(|(a, b)| number(a) && number(b))
}

/// One of several readings of a file.
#[derive(Debug, PartialEq)]
pub(super) struct Choice {
    /// For `--dataset`.
    pub pattern: String,
    /// Places of its datasets.
    pub members: Vec<usize>,
}

/// Why a file has no single reading of a dataset per id, and which it has.
#[derive(Debug)]
pub(super) struct Several {
    pub why: String,
    pub choices: Vec<Choice>,
}

/// The ids of `datasets`, each a record with its number of rows, by what differs between their paths below the group
/// `within`. `named`: an attribute names each record, so that its path need not.
pub(super) fn ids(datasets: &[(&Dataset, u64)], within: &str, named: bool) -> Result<Vec<String>, Several> {
    fn below<'p>(path: &'p str, within: &str) -> &'p str {
        path.strip_prefix(within).unwrap_or(path).trim_start_matches('/')
    }
    // In parallel, for the texts of 100,000 datasets come from memory, not from a cache.
    let paths: Vec<&str> =
        datasets.par_iter().with_min_len(1024).map(|(d, _)| below(&d.path, within)).collect();
    if let [only] = paths[..] {
        return Ok(vec![only.rsplit('/').next().unwrap_or_default().to_owned()]);
    }
    // The usual file, and the longest: all names beside each other.
    if paths.iter().all(|path| !path.contains('/')) && not_records(datasets, &paths, named).is_none() {
        return Ok(paths.into_par_iter().with_min_len(1024).map(str::to_owned).collect());
    }
    let parts: Vec<Vec<&str>> = paths.iter().map(|path| path.split('/').collect()).collect();
    let depth = parts[0].len();
    if parts.iter().any(|path| path.len() != depth) {
        return mixed(datasets, within, &paths);
    }
    let distinct = |at: usize| parts.iter().map(|path| path[at]).collect::<HashSet<_>>();
    let varying: Vec<usize> = (0..depth).filter(|&at| distinct(at).len() > 1).collect();
    let several = |why: &str, at: usize| Several {
        why: why.to_owned(),
        choices: by_component(&parts, within, &varying, at),
    };
    if let [at] = varying[..] {
        let names: Vec<&str> = parts.iter().map(|path| path[at]).collect();
        if let Some(why) = not_records(datasets, &names, named) {
            let mut found = several(why, at);
            // One set among ids: it, or all as ids.
            if found.choices.len() > FEW {
                found.choices.retain(|choice| choice.members.iter().any(|&i| is_field(names[i])));
                let every =
                    |(i, part): (usize, &&str)| if i == at { "*".to_owned() } else { (*part).to_owned() };
                let pattern = parts[0].iter().enumerate().map(every).collect::<Vec<_>>().join("/");
                let all = Choice { pattern: join(within, &pattern), members: (0..names.len()).collect() };
                found.choices.insert(0, all);
            }
            return Err(found);
        }
        return Ok(names.into_iter().map(str::to_owned).collect());
    }
    let full = |path: &Vec<&str>| varying.iter().map(|&at| path[at]).collect::<Vec<_>>().join("/");
    let all: Vec<String> = parts.iter().map(full).collect();
    let (groups, leaf) = match varying.split_last() {
        Some((leaf, groups)) => (groups, *leaf),
        None => return Ok(all),
    };
    let group_names: HashSet<String> =
        parts.iter().map(|path| groups.iter().map(|&at| path[at]).collect::<Vec<_>>().join("/")).collect();
    let leaves = distinct(leaf);
    let fewest = *varying.iter().min_by_key(|&&at| distinct(at).len()).unwrap_or(&leaf);
    let n = parts.len();
    // Which sets there are is what a component says that is called like one.
    let field = varying.iter().find(|&&at| distinct(at).iter().all(|name| is_field(name)));
    if let Some(&at) = field {
        return Err(several("holds several sets of rows", at));
    }
    if leaves.iter().all(|name| is_range(name)) {
        return Ok(all);
    }
    match (group_names.len() == n, leaves.len() == n) {
        (true, true) => Ok(all),
        (false, true) if leaves.iter().all(|name| is_number(name)) => Ok(all),
        (false, true) => Ok(parts.iter().map(|path| path[leaf].to_owned()).collect()),
        (true, false) => Err(several("has records whose datasets have different names", fewest)),
        (false, false) => {
            Err(several("holds several datasets for one id, or one id in several groups", fewest))
        }
    }
}

/// Why datasets with these names, which lie beside each other, are no records of one kind.
fn not_records(datasets: &[(&Dataset, u64)], names: &[&str], named: bool) -> Option<&'static str> {
    if named {
        return None;
    }
    let n = names.len();
    let vectors = datasets.iter().filter(|(d, _)| d.shape.len() == 1).count();
    let odd_rank = |i: usize| (datasets[i].0.shape.len() == 1) != (2 * vectors > n);
    let fields: Vec<usize> = (0..n).filter(|&i| is_field(names[i])).collect();
    // Among many ids a few may be words, as symbols of genes are; a set of rows among them has another shape, or is written
    // small.
    let like_a_symbol = |&i: &usize| !odd_rank(i) && names[i] == names[i].to_uppercase();
    let a_few = n > 50 && fields.len() * 20 <= n && fields.iter().all(like_a_symbol);
    if !fields.is_empty() && !a_few {
        return Some("holds several sets of rows");
    }
    let rows = |i: usize| datasets[i].1;
    let equal = vectors == 0 && rows(0) > 1 && (1..n).all(|i| rows(i) == rows(0));
    if equal && (n <= FEW || names.iter().all(|name| is_number(name))) {
        return Some("holds several matrices of one length");
    }
    None
}

/// Datasets at several depths: the last parts are ids where they can be.
fn mixed(datasets: &[(&Dataset, u64)], within: &str, paths: &[&str]) -> Result<Vec<String>, Several> {
    let last = |path: &'_ str| path.rsplit('/').next().unwrap_or_default().to_owned();
    let leaves: Vec<String> = paths.iter().map(|path| last(path)).collect();
    let groups = || paths.iter().map(|path| group_of(path)).filter(|group| !group.is_empty());
    let unlike_records = groups().any(|group| group.split('/').any(is_field));
    let names: Vec<&str> = leaves.iter().map(String::as_str).collect();
    let distinct = names.iter().collect::<HashSet<_>>().len() == names.len();
    if !unlike_records && not_records(datasets, &names, false).is_none() {
        if names.iter().any(|name| is_range(name)) {
            return Ok(paths.iter().map(|&path| path.to_owned()).collect());
        }
        if distinct && !names.iter().any(|name| is_number(name)) {
            return Ok(leaves);
        }
    }
    let mut by_group: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (at, path) in paths.iter().enumerate() {
        let top = path.split_once('/').map_or(*path, |(top, _)| top);
        by_group.entry(top).or_default().push(at);
    }
    let choices = by_group.into_iter().map(|(top, members)| Choice { pattern: join(within, top), members });
    Err(Several { why: "holds datasets at several depths".to_owned(), choices: choices.collect() })
}

fn join(within: &str, path: &str) -> String {
    if within.is_empty() { path.to_owned() } else { format!("{within}/{path}") }
}

/// One choice for each value of the component `at`, with `*` for the others that vary.
fn by_component(parts: &[Vec<&str>], within: &str, varying: &[usize], at: usize) -> Vec<Choice> {
    let mut members: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, path) in parts.iter().enumerate() {
        members.entry(path[at]).or_default().push(i);
    }
    let pattern = |value: &str, first: usize| {
        let component = |(i, part): (usize, &&str)| match i {
            i if i == at => value.to_owned(),
            i if varying.contains(&i) => "*".to_owned(),
            _ => (*part).to_owned(),
        };
        let text = parts[first].iter().enumerate().map(component).collect::<Vec<_>>().join("/");
        // A group is enough for all that lies in it.
        let text =
            text.strip_suffix("/*").filter(|short| !short.contains('*')).map_or(text.clone(), str::to_owned);
        join(within, &text)
    };
    members
        .into_iter()
        .map(|(value, members)| Choice { pattern: pattern(value, members[0]), members })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::file::{Kind, Place};
    use crate::data::kind::Stored;
    use crate::rows::Dtype;

    fn dataset(path: &str, shape: &[u64]) -> Dataset {
        let kind = Kind::Float(Stored { dtype: Dtype::F32, big_endian: false });
        Dataset { path: path.into(), shape: shape.to_vec(), kind, place: Place::Library }
    }

    fn decide(paths: &[(&str, &[u64])]) -> Result<Vec<String>, Vec<String>> {
        let all: Vec<Dataset> = paths.iter().map(|(path, shape)| dataset(path, shape)).collect();
        let rows = |d: &Dataset| if d.shape.len() == 1 { 1 } else { d.shape[0] };
        let all: Vec<(&Dataset, u64)> = all.iter().map(|d| (d, rows(d))).collect();
        ids(&all, "", false).map_err(|several| several.choices.into_iter().map(|c| c.pattern).collect())
    }

    #[test]
    fn the_id_is_what_differs() {
        let d: &[u64] = &[4];
        for (paths, ids) in [
            (["P1", "P2", "P3"], ["P1", "P2", "P3"]),
            (["P1/embedding", "P2/embedding", "P3/embedding"], ["P1", "P2", "P3"]),
            (["a_P1/t/l/e", "a_P2/t/l/e", "a_P3/t/l/e"], ["a_P1", "a_P2", "a_P3"]),
            (["A0/1-90", "A1/2-91", "A2/3-92"], ["A0/1-90", "A1/2-91", "A2/3-92"]),
            (["A0/1-90", "A0/95-180", "A2/1-90"], ["A0/1-90", "A0/95-180", "A2/1-90"]),
            (["s0/P1", "s0/P2", "s1/P3"], ["P1", "P2", "P3"]),
            (["s0/0", "s0/1", "s1/2"], ["s0/0", "s0/1", "s1/2"]),
            (["P0", "human/P1", "mouse/adult/P2"], ["P0", "P1", "P2"]),
        ] {
            let given: Vec<(&str, &[u64])> = paths.iter().map(|&path| (path, d)).collect();
            assert_eq!(decide(&given), Ok(ids.map(str::to_owned).to_vec()), "{paths:?}");
        }
    }

    #[test]
    fn several_readings_are_listed_as_patterns() {
        let (d, l): (&[u64], &[u64]) = (&[4], &[9, 4]);
        for (paths, choices) in [
            (vec![("P1/mean", d), ("P1/tok", l), ("P2/mean", d), ("P2/tok", l)], vec!["*/mean", "*/tok"]),
            (vec![("l_6/P1", d), ("l_6/P2", d), ("l_33/P1", d), ("l_33/P2", d)], vec!["l_33", "l_6"]),
            (vec![("test/P1", d), ("train/P2", d), ("train/P3", d)], vec!["test", "train"]),
            (vec![("layer_1", l), ("layer_2", l)], vec!["layer_1", "layer_2"]),
            (vec![("0", l), ("1", l), ("2", l)], vec!["0", "1", "2"]),
            (
                vec![("residue_embeddings", l), ("sequence_embedding", d)],
                vec!["residue_embeddings", "sequence_embedding"],
            ),
            (
                vec![("a/t1/l/e", d), ("a/t3/l/e", d), ("b/t1/l/e", d), ("b/t3/l/e", d), ("c/t1/l/e", d)],
                vec!["*/t1/l/e", "*/t3/l/e"],
            ),
        ] {
            let choices: Vec<String> = choices.into_iter().map(str::to_owned).collect();
            assert_eq!(decide(&paths), Err(choices), "{paths:?}");
        }
    }

    #[test]
    fn records_may_have_rows_of_any_number() {
        let paths: &[(&str, &[u64])] = &[("P1", &[9, 4]), ("P2", &[4]), ("Q", &[1, 4])];
        assert_eq!(decide(paths), Ok(vec!["P1".into(), "P2".into(), "Q".into()]));
    }
}
