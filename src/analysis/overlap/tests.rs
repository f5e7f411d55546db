use super::gather::{Gather, Gathered};
use super::permute::{Active, Measure, Shuffles, measure};
use super::*;
use std::path::Path;

const ACTIVE: Active = Active { threshold: 0.5, min_activation: 0.0 };
static NEVER: AtomicBool = AtomicBool::new(false);

fn labels(text: &str) -> Labels {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Labels::read(file.path(), None, &[]).unwrap()
}

/// Rows as (id, latents with values), of 4 latents.
fn gather(labels: &Labels, groups: &[usize], exclusive: bool, rows: &[(&str, &[(u32, f32)])]) -> Gathered {
    gather_in(u64::MAX, labels, groups, exclusive, rows)
}

/// The same in so many bytes of memory.
fn gather_in(
    memory: u64,
    labels: &Labels,
    groups: &[usize],
    exclusive: bool,
    rows: &[(&str, &[(u32, f32)])],
) -> Gathered {
    let room = Room::new(Some(memory), Path::new("."), []);
    let mut gather = Gather::new(labels, groups, exclusive, 4, room);
    for (id, code) in rows {
        let (latents, values): (Vec<u32>, Vec<f32>) = code.iter().copied().unzip();
        gather.add(id, &latents, &values).unwrap();
    }
    gather.finish().unwrap()
}

fn shuffles(permutations: usize, seed: u64) -> Shuffles {
    Shuffles { active: ACTIVE, permutations, seed }
}

#[test]
fn groups_are_counted_as_by_hand() {
    let labels = labels("id\tx\np\tA\nq\tA; B\nr\tB\ns\tC\nt\t\n");
    let rows: [(&str, &[(u32, f32)]); 7] = [
        // A protein of two residues; the others have one.
        ("p", &[(0, 1.0), (1, 2.0)]),
        ("p", &[(0, 3.0)]),
        ("q", &[(1, 4.0), (3, 1.0)]),
        ("r", &[(3, 2.0)]),
        ("s", &[(2, 9.0)]),
        ("t", &[(2, 9.0)]),
        ("u", &[(2, 9.0)]),
    ];
    let data = gather(&labels, &[0, 1], false, &rows);
    assert_eq!(
        data.ids,
        IdCounts { in_groups: 3, in_several: 1, other_labels: 1, unlabelled: 1, not_in_table: 1 }
    );
    let a = data.totals(1);
    assert_eq!(
        (a.ids, a.rows, &a.counts[..], &a.sums[..]),
        (2, 3, &[2, 2, 0, 1][..], &[4.0, 6.0, 0.0, 1.0][..])
    );
    let b = data.totals(2);
    assert_eq!((b.ids, b.rows, &b.counts[..]), (2, 2, &[0, 1, 0, 2][..]));
    let latents = latents(&[a, b], &ACTIVE, 4);
    let classes: Vec<&str> = latents.iter().map(Latent::class).collect();
    // Latent 1 is active in A (2 of 3 rows) and, at exactly half, not above the threshold in B.
    assert_eq!(classes, ["specific", "specific", "none", "specific"]);
    assert_eq!(latents[1].means, [2.0, 2.0]);
    let pair = shuffles(0, 0).pair(&data, ("A", 1), ("B", 2), &NEVER).unwrap();
    assert_eq!(pair.ids_in_both, 1);
    assert_eq!((pair.active_a.observed, pair.active_b.observed), (Some(2.0), Some(1.0)));
    assert_eq!((pair.jaccard.observed, pair.share_of_a.observed), (Some(0.0), Some(0.0)));
    assert_eq!((pair.jaccard.shuffled_mean, pair.jaccard.p), (None, None), "no shuffles, no baseline");

    let alone = gather(&labels, &[0, 1], true, &rows);
    let mut ids = vec![];
    let each = alone.log.each(&NEVER, |id| {
        ids.push((id.mask, id.rows));
        Ok(())
    });
    assert_eq!((each.is_ok(), ids), (true, vec![(1, 2), (2, 1)]));
    assert_eq!(alone.ids.in_several, 1);
}

#[test]
fn a_least_activation_is_asked_for_as_well() {
    let both = Active { threshold: 0.25, min_activation: 0.5 };
    assert!(both.holds(2, 2.5, 4));
    assert!(!both.holds(2, 2.0, 4), "a mean of exactly the least");
    assert!(!both.holds(1, 9.0, 4), "a share of exactly the threshold");
    let none = Active { min_activation: 0.0, ..both };
    assert!(none.holds(2, -1e-17, 4), "a sum that rounding has taken below 0");
}

#[test]
fn three_groups_share_all_some_or_none() {
    let latent =
        |active: [bool; 3]| Latent { shares: vec![], means: vec![], active: active.to_vec() }.class();
    assert_eq!(latent([true, true, true]), "shared");
    assert_eq!(latent([true, false, true]), "some");
    assert_eq!(latent([false, false, true]), "specific");
    assert_eq!(latent([false; 3]), "none");
}

/// 3 ids in A with latent 0, 3 in B with latent 1, and latent 2 in all. There are 20 ways to deal the labels; 2 of them
/// keep the latents 0 and 1 apart.
fn three_and_three() -> Gathered {
    let labels = labels("id\tx\na\tA\nb\tA\nc\tA\nd\tB\ne\tB\nf\tB\n");
    let code =
        |j: u32| -> &[(u32, f32)] { if j == 0 { &[(0, 1.0), (2, 1.0)] } else { &[(1, 1.0), (2, 1.0)] } };
    let rows: Vec<(&str, &[(u32, f32)])> =
        ["a", "b", "c", "d", "e", "f"].iter().enumerate().map(|(i, id)| (*id, code(i as u32 / 3))).collect();
    gather(&labels, &[0, 1], false, &rows)
}

#[test]
fn the_baseline_is_that_of_all_ways_to_deal_the_labels() {
    let data = three_and_three();
    // Above one half of three rows are two: either group has exactly one of the latents 0 and 1, and never the same,
    // so with latent 2 in both every deal shares 1 of 3. Above a quarter one row is enough: then 18 of the 20 deals
    // share all 3 latents and 2 share 1 of 3.
    let pair = shuffles(500, 3).pair(&data, ("A", 1), ("B", 2), &NEVER).unwrap();
    let always = Some(1.0 / 3.0);
    assert_eq!((pair.jaccard.shuffled_low, pair.jaccard.shuffled_high), (always, always));
    assert_eq!(pair.jaccard.p, Some(1.0));
    let easy =
        Shuffles { active: Active { threshold: 0.25, min_activation: 0.0 }, permutations: 20_000, seed: 3 };
    let pair = easy.pair(&data, ("A", 1), ("B", 2), &NEVER).unwrap();
    let mean = pair.jaccard.shuffled_mean.unwrap();
    // Four standard errors of 20,000 draws with P = 0.1: 4 * 0.3 * (2 / 3) / sqrt(20,000).
    assert!((mean - (0.9 + 0.1 / 3.0)).abs() < 0.006, "{mean}");
    let p = pair.jaccard.p.unwrap();
    assert!(
        (p - 0.2).abs() < 2.0 * 4.0 * 0.3 / 20_000f64.sqrt(),
        "twice the share of the 2 deals of 20: {p}"
    );
    assert_eq!(pair.shared.observed, Some(1.0));
}

#[test]
fn a_shuffle_keeps_the_sizes_and_the_sum_of_all() {
    // 5 ids in A alone, 2 in B alone, 1 in both: the largest kind is what remains of the sum.
    let table = "id\tx\n0\tA\n1\tA\n2\tA\n3\tA\n4\tA\n5\tB\n6\tB\n7\tA;B\n";
    let names: Vec<String> = (0..8).map(|i| i.to_string()).collect();
    let codes: Vec<[(u32, f32); 1]> = (0..8).map(|i| [(i % 4, i as f32)]).collect();
    let rows: Vec<(&str, &[(u32, f32)])> =
        names.iter().zip(&codes).map(|(n, c)| (n.as_str(), c.as_slice())).collect();
    let data = gather(&labels(table), &[0, 1], false, &rows);
    let any = Active { threshold: 0.0, min_activation: 0.0 };
    let ways = Shuffles { active: any, permutations: 200, seed: 1 };
    let pair = ways.pair(&data, ("A", 1), ("B", 2), &NEVER).unwrap();
    // B has 3 of 8 ids, A 6: with one latent an id and each latent in two ids, B has 2 or 3 latents and A 3 or 4.
    assert_eq!((pair.active_b.shuffled_low, pair.active_b.shuffled_high), (Some(2.0), Some(3.0)));
    assert_eq!((pair.active_a.shuffled_low, pair.active_a.shuffled_high), (Some(3.0), Some(4.0)));
    // The id in both keeps one latent shared at least.
    assert!(pair.shared.shuffled_low.unwrap() >= 1.0);
}

#[test]
fn figures_do_not_depend_on_threads_and_do_on_the_seed() {
    let data = three_and_three();
    let run = |threads: usize, seed: u64| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let easy =
            Shuffles { active: Active { threshold: 0.25, min_activation: 0.0 }, permutations: 999, seed };
        pool.install(|| easy.pair(&data, ("A", 1), ("B", 2), &NEVER).unwrap().jaccard)
    };
    assert_eq!(run(1, 5), run(7, 5));
    assert_ne!(run(1, 5), run(1, 6));
}

#[test]
fn a_measure_is_that_of_its_definition() {
    let shuffled: Vec<f64> = (0..=100).rev().map(f64::from).collect();
    let m = measure(Some(1.0), shuffled.clone());
    let close = |a: Option<f64>, b: f64| assert!((a.unwrap() - b).abs() < 1e-12, "{a:?} {b}");
    close(m.shuffled_mean, 50.0);
    close(m.shuffled_low, 2.5);
    close(m.shuffled_high, 97.5);
    // 0 and 1 are at most 1, and the observation itself counts: 2 * 3 / 102.
    close(m.p, 6.0 / 102.0);
    close(measure(Some(-1.0), shuffled.clone()).p, 2.0 / 102.0);
    close(measure(Some(50.0), shuffled).p, 1.0);
    let none =
        Measure { observed: None, shuffled_mean: None, shuffled_low: None, shuffled_high: None, p: None };
    assert_eq!(measure(None, vec![]), none);
}
