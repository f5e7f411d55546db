#![allow(clippy::unwrap_used)]

use super::*;
use std::sync::mpsc::{Receiver, channel};
use tempfile::TempDir;

const QUICK: Timing = Timing {
    start: Duration::from_secs(10),
    beat: Duration::from_millis(50),
    silence: Duration::from_millis(700),
    standstill: Duration::from_millis(500),
};

fn place(rank: usize, count: usize) -> Place {
    Place { rank, count, local_rank: rank, local_count: count, launcher: Launcher::Torchrun, master: None }
}

fn join(rank: usize, count: usize, folder: &TempDir, timing: Timing) -> (Result<Peers>, Receiver<End>) {
    let (sender, ends) = channel();
    let on_end: OnEnd = Box::new(move |end| {
        sender.send(end.clone()).unwrap_or(());
        None
    });
    (Peers::join(place(rank, count), &folder.path().join("ranks.json"), "a run", timing, on_end), ends)
}

/// Calls `work` for every rank on a thread of its own; what each gives, and how its run was said to end.
fn ranks<T: Send>(count: usize, work: impl Fn(Peers) -> T + Sync) -> Vec<(T, Option<End>)> {
    let folder = TempDir::new().unwrap();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|rank| {
                let (folder, work) = (&folder, &work);
                scope.spawn(move || {
                    // The last comes late.
                    std::thread::sleep(Duration::from_millis(if rank + 1 == count { 300 } else { 0 }));
                    let (peers, ends) = join(rank, count, folder, QUICK);
                    (work(peers.unwrap()), ends.recv_timeout(Duration::from_millis(300)).ok())
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn ranks_meet_exchange_and_part() {
    let all = ranks(4, |peers| {
        let rank = peers.place().rank;
        for round in 0..50u8 {
            let all = peers.exchange(&[round, rank as u8]).unwrap();
            assert_eq!(all, (0..4).map(|rank| vec![round, rank]).collect::<Vec<_>>());
        }
        assert_eq!(peers.from_first(format!("of {rank}").as_bytes()).unwrap(), b"of 0");
        assert!(peers.any(rank == 2).unwrap() && !peers.any(false).unwrap());
        // The last takes its time.
        std::thread::sleep(Duration::from_millis(if rank == 3 { 900 } else { 0 }));
        peers.finish().is_ok()
    });
    assert!(all.iter().all(|(finished, end)| *finished && end.is_none()), "{all:?}");
}

#[test]
fn a_rank_that_fails_or_is_gone_ends_all_with_its_name() {
    for (which, count) in [(1, 3), (0, 3), (2, 3), (1, 2)] {
        for says_why in [true, false] {
            let began = Instant::now();
            let all = ranks(count, |peers| {
                peers.exchange(&[]).unwrap();
                if peers.place().rank == which {
                    if says_why {
                        peers.fail("not enough GPU memory");
                    }
                    return "gone".to_owned();
                }
                peers.exchange(&[]).unwrap_err().to_string()
            });
            assert!(began.elapsed() < Duration::from_secs(8));
            for (rank, (error, end)) in all.iter().enumerate().filter(|(rank, _)| *rank != which) {
                let cause = if says_why { "not enough GPU memory" } else { "ended without saying why" };
                let named = format!("rank {which} on {}", host());
                assert!(error.contains(&named) && error.contains(cause), "{rank}: {error}");
                let end = end.as_ref().unwrap();
                assert_eq!((end.rank, &end.to_string()), (which, error));
            }
        }
    }
}

/// A process that is stopped keeps its connection, and says nothing.
#[test]
fn a_rank_that_shows_no_life_ends_all() {
    let folder = TempDir::new().unwrap();
    let (sender, stop) = channel::<()>();
    let silent = std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            let (peers, _) = join(0, 2, &folder, QUICK);
            peers.unwrap().exchange(&[]).unwrap_err().to_string()
        });
        let path = folder.path().join("ranks.json");
        let second = scope.spawn(move || {
            let connected = loop {
                if let Ok(Some(connected)) = call(&place(1, 2), &path, "a run", QUICK) {
                    break connected;
                }
                std::thread::sleep(Duration::from_millis(20));
            };
            let _ = stop.recv_timeout(Duration::from_secs(20));
            drop(connected);
        });
        let error = first.join().unwrap();
        let _ = sender.send(());
        second.join().unwrap();
        error
    });
    assert!(silent.contains("rank 1 on") && silent.contains("no sign of life for 0.7 s"), "{silent}");
}

#[test]
fn ranks_that_wait_for_each_other_are_told_which_is_behind() {
    let all = ranks(3, |peers| {
        peers.exchange(&[]).unwrap();
        (0..5).for_each(|_| peers.counts());
        if peers.place().rank != 1 {
            // Rank 1 skips a step: the others wait for it, and it for their next.
            peers.counts();
        }
        let _waits = peers.waits();
        let state = peers.shared.lock();
        let wait =
            peers.shared.changed.wait_timeout_while(state, Duration::from_secs(20), |s| s.ended.is_none());
        wait.unwrap().0.ended.clone().unwrap().to_string()
    });
    for (text, _) in all {
        assert!(
            text.contains("rank 1 on") && text.contains("this one after 5 exchanges and others after 6"),
            "{text}"
        );
    }
}

/// One that works on is waited for, as long as it lives.
#[test]
fn a_rank_that_works_is_waited_for() {
    let all = ranks(2, |peers| {
        if peers.place().rank == 1 {
            std::thread::sleep(3 * QUICK.silence.max(QUICK.standstill));
        }
        peers.exchange(&[]).is_ok() && peers.finish().is_ok()
    });
    assert!(all.iter().all(|(fine, end)| *fine && end.is_none()), "{all:?}");
}

#[test]
fn ranks_that_do_not_come_are_named_and_strangers_are_refused() {
    let short = Timing { start: Duration::from_millis(800), ..QUICK };
    let folder = TempDir::new().unwrap();
    // What an older run left behind points nowhere.
    std::fs::write(folder.path().join("ranks.json"), r#"{"hosts":["127.0.0.1"],"port":9,"token":"old"}"#)
        .unwrap();
    let all: Vec<String> = std::thread::scope(|scope| {
        let folder = &folder;
        let first = scope.spawn(move || join(0, 4, folder, short).0.err().unwrap().to_string());
        let third = scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            let on_end: OnEnd = Box::new(|_| None);
            let path = folder.path().join("ranks.json");
            Peers::join(place(2, 4), &path, "another run", short, on_end).err().unwrap().to_string()
        });
        [first, third].into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(all[0].contains("of 4 ranks, 1, 2, 3 did not come"), "{}", all[0]);
    assert!(all[1].contains("rank 2 on") && all[1].contains("rank 0 cannot be reached"), "{}", all[1]);
    assert!(!folder.path().join("ranks.json").exists(), "what rank 0 wrote is left behind");
}
