//! `sae features --track`.

use super::Place;
use crate::runs::{hdf5_file, sae, sae_fails, sae_ok, write_named, write_residues};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// Residues of sixty proteins, five each, a run, and the codes of all residues as `sae encode` gives them.
fn with_run() -> (Place, HashMap<(String, u32), f32>) {
    let place = Place::with_data(300, 16);
    place.train("run", &[]);
    write_residues(&place.path("residues.h5"), 60, 5, 16);
    let codes = codes(&place, "residues.h5");
    (place, codes)
}

/// Activations by row and latent.
fn codes(place: &Place, data: &str) -> HashMap<(String, u32), f32> {
    let (run, data, out) = (place.name("run"), place.name(data), place.name("codes.tsv"));
    sae_ok(["encode", &run, &data, "-o", &out, "--format=tsv", "--overwrite"]);
    let text = std::fs::read_to_string(out).unwrap();
    let line = |line: &str| {
        let fields: Vec<&str> = line.split('\t').collect();
        ((fields[0].to_owned(), fields[1].parse().unwrap()), fields[2].parse().unwrap())
    };
    text.lines().skip(1).map(line).collect()
}

/// Latents, positions, ids, and values by row of a table.
type Table = (Vec<u32>, Vec<u32>, Vec<String>, Vec<Vec<f32>>);

fn table(text: &str) -> Table {
    let mut lines = text.lines();
    let header = lines.next().unwrap().strip_prefix("position\tid\t").unwrap();
    let latents =
        header.split('\t').map(|name| name.strip_prefix("latent_").unwrap().parse().unwrap()).collect();
    let mut table: Table = (latents, vec![], vec![], vec![]);
    for line in lines {
        let fields: Vec<&str> = line.split('\t').collect();
        assert_eq!(fields.len(), 2 + table.0.len(), "{line}");
        table.1.push(fields[0].parse().unwrap());
        table.2.push(fields[1].to_owned());
        table.3.push(fields[2..].iter().map(|value| value.parse().unwrap()).collect());
    }
    table
}

/// A chain of alpha carbons in PDB's columns, whose B-factors are 42.25.
fn chain(name: char, residues: u32) -> String {
    let atom = |n| {
        format!(
            "ATOM  {n:>5}  CA  GLY {name}{n:>4}    {:>8.3}{:>8.3}{:>8.3}{:>6.2}{:>6.2}           C\n",
            3.8 * f64::from(n),
            0.0,
            0.0,
            1.0,
            42.25
        )
    };
    (1..=residues).map(atom).collect::<String>() + "TER\n"
}

/// All latents of the run.
fn all_latents() -> String {
    format!("--latents={}", (0..64).map(|latent| latent.to_string()).collect::<Vec<_>>().join(","))
}

fn b_factors(path: &Path) -> Vec<f64> {
    let text = std::fs::read_to_string(path).unwrap();
    let atoms = text.lines().filter(|line| line.starts_with("ATOM"));
    atoms.map(|line| line[60..66].trim().parse().unwrap()).collect()
}

#[test]
fn a_track_has_the_codes_of_one_protein_and_its_strongest_latents() {
    let (place, codes) = with_run();
    let (run, data, out, plot) =
        (place.name("run"), place.name("residues.h5"), place.name("track.tsv"), place.name("track.png"));
    let told = sae_ok(["features", &run, &data, "--track=P007", "-o", &out, "--plot", &plot]);
    assert!(told.contains("P007: 5 rows, 8 latents"), "{told}");
    assert!(std::fs::read(&plot).unwrap().starts_with(b"\x89PNG"));
    let text = std::fs::read_to_string(&out).unwrap();
    assert_eq!(sae_ok(["features", &run, &data, "--track=P007"]), text, "the same without a file");
    let (latents, positions, ids, values) = table(&text);
    assert_eq!(positions, [1, 2, 3, 4, 5]);
    assert_eq!(ids, ["P007:1", "P007:2", "P007:3", "P007:4", "P007:5"]);
    let code = |id: &String, latent| codes.get(&(id.clone(), latent)).copied().unwrap_or(0.0);
    for (id, values) in ids.iter().zip(&values) {
        let expected: Vec<f32> = latents.iter().map(|&latent| code(id, latent)).collect();
        assert_eq!(*values, expected, "{id}");
    }
    let largest = |latent: &u32| ids.iter().map(|id| code(id, *latent)).fold(0f32, f32::max);
    let mut all: Vec<u32> = (0..64).filter(|latent| largest(latent) > 0.0).collect();
    all.sort_by(|a, b| largest(b).total_cmp(&largest(a)));
    assert!(all.len() > 8);
    assert_eq!(latents, all[..8]);
    // As JSON, and with what is printed beside a file.
    let shown: Value =
        serde_json::from_str(&sae_ok(["features", &run, &data, "--track=P007", "--json"])).unwrap();
    for (j, latent) in shown["latents"].as_array().unwrap().iter().enumerate() {
        let column: Vec<f64> = values.iter().map(|row| f64::from(row[j])).collect();
        let got: Vec<f64> =
            latent["activations"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        assert_eq!(got.iter().map(|&v| v as f32 as f64).collect::<Vec<_>>(), column);
        let most = column.iter().copied().fold(0.0, f64::max);
        let at = 1 + column.iter().position(|&v| v == most).unwrap();
        assert_eq!(latent["max_position"], at);
        assert_eq!(latent["active_rows"], column.iter().filter(|&&v| v > 0.0).count());
    }
}

#[test]
fn latents_are_in_the_order_asked_for_and_tokens_are_left_out() {
    let (place, codes) = with_run();
    let (run, data) = (place.name("run"), place.name("residues.h5"));
    let args = ["features", &run, &data, "--track=P011", "--latents=5,2,63", "--tokens=1,2"];
    let (latents, positions, ids, values) = table(&sae_ok(args));
    assert_eq!((latents, positions), (vec![5, 2, 63], vec![1, 2]));
    assert_eq!(ids, ["P011:2", "P011:3"]);
    for (id, values) in ids.iter().zip(values) {
        let expected = [5, 2, 63].map(|latent| codes.get(&(id.clone(), latent)).copied().unwrap_or(0.0));
        assert_eq!(values, expected);
    }
}

#[test]
fn rows_of_a_matrix_belong_to_the_id_before_their_number() {
    let place = Place::with_data(300, 16);
    place.train("run", &[]);
    let name = |n: usize| if n.is_multiple_of(2) { format!("A:{}", 20 - n) } else { format!("B:{n}") };
    write_named(&place.path("named.h5"), &(0..20).map(name).collect::<Vec<_>>(), 16);
    let codes = codes(&place, "named.h5");
    let (latents, positions, ids, values) =
        table(&sae_ok(["features", &place.name("run"), &place.name("named.h5"), "--track=A"]));
    assert_eq!(ids, (1..=10).map(|n| format!("A:{}", 2 * n)).collect::<Vec<_>>());
    assert_eq!(positions, (1..=10).collect::<Vec<_>>());
    for (id, values) in ids.iter().zip(values) {
        for (latent, value) in latents.iter().zip(values) {
            assert_eq!(value, codes.get(&(id.clone(), *latent)).copied().unwrap_or(0.0));
        }
    }
}

#[test]
fn a_structure_is_coloured_by_one_latent_or_by_each() {
    let (place, _) = with_run();
    let (run, data, structure) = (place.name("run"), place.name("residues.h5"), place.name("P007.pdb"));
    let text = chain('A', 4)
        + &chain('B', 5)
        + &chain('C', 5)
        + "HETATM    1  O   HOH B   9       0.0     0.0     0.0     1.00 20.00\n";
    std::fs::write(&structure, text).unwrap();
    let (latents, _, _, values) = table(&sae_ok(["features", &run, &data, "--track=P007"]));
    let scaled = |j: usize| {
        let column: Vec<f64> = values.iter().map(|row| f64::from(row[j])).collect();
        let most = column.iter().copied().fold(0.0, f64::max);
        column.into_iter().map(move |v| 100.0 * v / most).collect::<Vec<f64>>()
    };
    // Two digits behind the point.
    let close = |got: &[f64], wanted: &[f64]| {
        assert!(
            got.len() == wanted.len() && got.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 0.00501),
            "{got:?} {wanted:?}"
        );
    };
    let coloured = place.name("coloured.pdb");
    let args =
        ["features", &run, &data, "--track=P007", "--structure", &structure, "-o", &place.name("t.tsv")];
    let told = sae_ok(args.into_iter().chain(["--coloured", &coloured]));
    assert!(
        told.contains("5 residues of chain B") && told.contains("--chain B,C colours these too"),
        "{told}"
    );
    assert!(
        told.contains("B-factor 100 is an activation of")
            && told.contains(&format!("of latent {}", latents[0]))
    );
    let zero = |n: usize| vec![0.0; n];
    close(&b_factors(Path::new(&coloured)), &[zero(4), scaled(0), zero(5)].concat());
    let named = format!("--latents={},{}", latents[3], latents[1]);
    let pattern = place.name("by-{latent}.pdb");
    let more = ["--coloured", &pattern, &named, "--chain=B,C", "--overwrite", "--json"];
    let shown: Value = serde_json::from_str(&sae_ok(args.into_iter().chain(more))).unwrap();
    assert_eq!(shown["structure"]["chains"], serde_json::json!(["B", "C"]));
    for (j, file) in [3, 1].into_iter().zip(shown["structure"]["files"].as_array().unwrap()) {
        assert_eq!(file["latent"], latents[j]);
        let path = place.path(&format!("by-{}.pdb", latents[j]));
        assert_eq!(file["path"], path.to_str().unwrap());
        close(&b_factors(&path), &[zero(4), scaled(j), scaled(j)].concat());
    }
    // A latent that is not active along the protein.
    let shown: Value =
        serde_json::from_str(&sae_ok(["features", &run, &data, "--track=P007", "--json", &all_latents()]))
            .unwrap();
    let idle = shown["latents"].as_array().unwrap().iter().find(|latent| latent["active_rows"] == 0).unwrap();
    let named = format!("--latents={}", idle["latent"]);
    let told = sae_ok(args.into_iter().chain(["--coloured", &coloured, &named, "--overwrite"]));
    assert!(told.contains("all B-factors are 0, for latent"), "{told}");
    assert_eq!(b_factors(Path::new(&coloured)), zero(14));
    // By number the chain that lacks a residue is coloured too.
    let more = ["--coloured", &coloured, "--chain=A", "--match=number", "--overwrite"];
    let told = sae_ok(args.into_iter().chain(more));
    assert!(told.contains("4 residues of chain A"), "{told}");
    close(&b_factors(Path::new(&coloured)), &[scaled(0)[..4].to_vec(), zero(10)].concat());
}

#[test]
fn rows_of_other_proteins_are_not_looked_at() {
    let place = Place::with_data(300, 16);
    place.train("run", &[]);
    let (run, data, structure) = (place.name("run"), place.name("bad.h5"), place.name("x.pdb"));
    hdf5_file(Path::new(&data), |file| {
        for (name, length) in [("P1", 6), ("P2", 5), ("P3", 7)] {
            let mut values = crate::common::values(length * 16, 1);
            if name == "P2" {
                values[2 * 16 + 3] = f32::NAN;
            }
            file.new_dataset::<f32>().shape((length, 16)).create(name).unwrap().write_raw(&values).unwrap();
        }
    });
    assert_eq!(table(&sae_ok(["features", &run, &data, "--track=P1"])).1, [1, 2, 3, 4, 5, 6]);
    let (status, text) = sae_fails(["features", &run, &data, "--track=P2"]);
    assert!(status == 1 && text.contains("P2\", row 2: column 3 is NaN"), "{text}");
    let skips = ["features", &run, &data, "--track=P2", "--skip-bad-rows"];
    let (_, positions, ids, _) = table(&sae_ok(skips));
    assert_eq!(positions, [1, 2, 4, 5]);
    assert_eq!(ids, ["P2:1", "P2:2", "P2:4", "P2:5"]);
    // Four rows are left, and the structure's four residues may be others.
    std::fs::write(&structure, chain('A', 4)).unwrap();
    let colours = ["--structure", &structure, "--coloured", &place.name("y.pdb")];
    let (_, text) = sae_fails(skips.into_iter().chain(colours));
    assert!(text.contains("1 rows of P2 were dropped") && !place.path("y.pdb").exists(), "{text}");
}

#[test]
fn what_makes_no_track_is_refused_by_name() {
    let (place, _) = with_run();
    let (run, data, structure) = (place.name("run"), place.name("residues.h5"), place.name("x.pdb"));
    std::fs::write(&structure, chain('A', 5) + &chain('B', 3)).unwrap();
    let fails = |more: &[&str]| sae_fails(["features", &run, &data].iter().chain(more));
    let (status, text) = fails(&["--track=P0071"]);
    assert!(
        status == 1
            && text
                .contains("residues.h5: holds no rows of \"P0071\"; of its 60 ids the nearest are \"P007\","),
        "{text}"
    );
    let (status, text) = sae_fails(["features", &run, &place.name("data.h5"), "--track=id0001"]);
    assert!(
        status == 1 && text.contains("has one row for \"id0001\"") && text.contains("per-residue"),
        "{text}"
    );
    let refused: [(&[&str], &str); 12] = [
        (&["--latents=64"], "the model has no latent 64; give numbers from 0 to 63"),
        (&["--latents=1,2,1"], "--latents names 1 twice"),
        (&["--tokens=3,2"], "--tokens 3,2 leaves none of the 5 rows of P007"),
        (
            &["--out", &structure, "--structure", &structure, "--coloured=y.pdb", "--overwrite"],
            "is an input as well",
        ),
        (&["--structure", &structure, "--coloured", &structure, "--overwrite"], "is an input as well"),
        (
            &["--structure", &structure, "--coloured=y.cif"],
            "the copy is plain PDB, as the structure is, and no .cif",
        ),
        (&["--structure", &structure, "--coloured=y.pdb.gz"], "and no .gz; name it .pdb"),
        (&["--structure", &structure, "--coloured={latent}.pdb"], "name them, as in --latents 12,40"),
        (
            &["--structure", &structure, "--coloured=y.pdb", "--chain=B"],
            "its chain B has 3 residues, and P007 has 5 rows; if the first and the last row are tokens, add --tokens 1,1",
        ),
        (
            &["--structure", &structure, "--coloured=y.pdb", "--chain=Z"],
            "has no chain \"Z\"; its chains: A (5 residues), B (3 residues)",
        ),
        (&["--structure", &data, "--coloured=y.pdb"], "is neither PDB nor mmCIF"),
        (&["--structure", "nowhere.pdb", "--coloured=y.pdb"], "nowhere.pdb: cannot read"),
    ];
    for (more, expected) in refused {
        let (_, text) = fails(&[&["--track=P007"], more].concat());
        assert!(text.contains(expected), "{more:?}: {text}");
    }
    assert!(!Path::new("y.pdb").exists());
    // The command line itself says which options have no meaning together.
    let usage = |more: &[&str]| {
        let output = sae(["features", &run, &data].iter().chain(more));
        assert_eq!(output.status.code(), Some(2), "{more:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let labels = place.name("labels.tsv");
    let others: [&[&str]; 6] = [
        &["--labels", &labels],
        &["--split=all"],
        &["--top=3"],
        &["--neighbours=2"],
        &["--pool"],
        &["--memory=1G"],
    ];
    for other in others {
        let text = usage(&[&["--track=P007"], other].concat());
        let name = other[0].split('=').next().unwrap();
        assert!(
            text.contains("--track <ID>") && text.contains(name) && text.contains("cannot be used with"),
            "{text}"
        );
    }
    for alone in ["--latents=1", "--plot=x.png", "--tokens=1,1"] {
        assert!(usage(&[alone]).contains("--track <ID>"), "{alone}");
    }
    assert!(usage(&["--track=P007", "--structure", &structure]).contains("--coloured <FILE>"));
    assert!(usage(&["--track=P007", "--coloured=y.pdb"]).contains("--structure <FILE>"));
    assert!(usage(&["--track=P007", "--tokens=1"]).contains("START,END, such as 1,1"));
}
