//! What must hold of every score, whatever happens to the cluster.

use pfm::{Band, Config, Mode, PeerSummary, Pfm, ReleasePolicy, Sample, Score};

use crate::cluster::{Cluster, Fault, IDLE, ORDINARY};

fn consistent(score: &Score) {
    let (Some(low), Some(middle), Some(high)) = (score.score_low, score.score, score.score_high)
    else {
        assert_eq!(score.score, None);
        assert_eq!((score.score_low, score.score_high), (None, None));
        assert_eq!((score.probability, score.mode), (None, None));
        return;
    };
    assert!((0.0..=100.0).contains(&low) && low <= middle && middle <= high && high <= 100.0);
    let p = [
        score.probability_low.expect("known with the score"),
        score.probability.expect("known with the score"),
        score.probability_high.expect("known with the score"),
    ];
    assert!(0.0 <= p[0] && p[0] <= p[1] && p[1] <= p[2] && p[2] <= 1.0, "{p:?}");
    let shares: f64 = score.modes.iter().map(|mode| mode.share).sum();
    assert!((shares - 1.0).abs() < 1e-9, "{shares}");
    let of_modes: f64 = score.modes.iter().map(|mode| mode.probability).sum();
    let worst = score.modes.iter().map(|mode| mode.probability).fold(0.0, f64::max);
    assert!(worst <= p[1] + 1e-9 && p[1] <= of_modes + 1e-9);
}

#[test]
fn the_interval_contains_the_score_and_shares_sum_to_1_whatever_happens() {
    for seed in 0..20 {
        let mut cluster = Cluster::new(seed, 3);
        for second in 0..900_u32 {
            let fault = match second / 100 {
                3 => Fault { added_us: 9_000.0, ..Fault::default() },
                5 => Fault { added_us: 200_000.0, ..Fault::default() },
                6 => Fault { errors: u64::from(second % 7 == 0), ..Fault::default() },
                _ => Fault::default(),
            };
            let load = if second / 100 == 7 { IDLE } else { ORDINARY };
            cluster.second(&load, &fault);
            for id in 1..=3 {
                consistent(&cluster.score(id));
            }
        }
    }
}

#[test]
fn a_burst_of_errors_makes_the_error_mode_dominate() {
    let mut cluster = Cluster::new(7, 3);
    for _ in 0..60 {
        cluster.second(&ORDINARY, &Fault::default());
    }
    let before = cluster.score(1);
    assert_eq!(before.mode, None);
    let fault = Fault { errors: 4, ..Fault::default() };
    for _ in 0..3 {
        cluster.second(&ORDINARY, &fault);
    }
    let after = cluster.score(1);
    assert!(after.score.expect("known") >= 90.0, "{after:?}");
    assert_eq!(after.mode, Some(Mode::Error));
    assert!(after.modes[0].share > 0.9);
    assert_eq!(after.top_features[0].name, "io_errors");
    assert_eq!(after.band, Band::Evacuate);
    assert!(cluster.score(2).score.expect("known") < 50.0);
}

#[test]
fn more_errors_never_lower_the_score() {
    let mut last = 0.0;
    for errors in 0..40 {
        let mut cluster = Cluster::new(11, 3);
        for second in 0..60 {
            let errors = if second == 50 { errors } else { 0 };
            cluster.second(&ORDINARY, &Fault { errors, ..Fault::default() });
        }
        let score = cluster.score(1).score.expect("known");
        assert!(score >= last, "{errors} errors gave {score}, fewer gave {last}");
        last = score;
    }
    assert!(last > 90.0);
}

#[test]
fn a_server_that_was_never_asked_for_io_is_unknown() {
    let mut cluster = Cluster::new(3, 3);
    for _ in 0..120 {
        cluster.second(&IDLE, &Fault::default());
        assert_eq!(cluster.score(1).score, None);
    }
}

#[test]
fn nothing_is_said_before_ten_samples() {
    let mut cluster = Cluster::new(3, 3);
    for _ in 0..9 {
        cluster.second(&ORDINARY, &Fault::default());
        assert_eq!(cluster.score(1).score, None);
    }
    for _ in 0..30 {
        cluster.second(&ORDINARY, &Fault::default());
    }
    assert!(cluster.score(1).score.is_some());
}

#[test]
fn an_emptied_slow_server_fades_into_unknown_and_never_jumps_to_0() {
    let mut cluster = Cluster::new(5, 3);
    let slow = Fault { added_us: 80_000.0, ..Fault::default() };
    for _ in 0..120 {
        cluster.second(&ORDINARY, &Fault::default());
    }
    for _ in 0..60 {
        cluster.second(&ORDINARY, &slow);
    }
    let mut last = cluster.score(1).score.expect("known");
    assert!(last >= 70.0, "{last}");
    let mut unknown = false;
    for _ in 0..800 {
        cluster.second(&IDLE, &Fault::default());
        match cluster.score(1).score {
            Some(score) => {
                assert!(!unknown, "came back without a single operation");
                assert!((score - last).abs() < 15.0, "jumped from {last} to {score}");
                last = score;
            }
            None => unknown = true,
        }
    }
    assert!(unknown);
    assert!(last > 5.0, "{last}");
}

#[test]
fn silent_telemetry_is_unknown_at_once() {
    let mut cluster = Cluster::new(5, 3);
    for _ in 0..60 {
        cluster.second(&ORDINARY, &Fault::default());
    }
    assert!(cluster.score(1).score.is_some());
    let later_s = cluster.now_s + 16;
    assert_eq!(cluster.pfm(1).score(later_s).score, None);
}

#[test]
fn another_series_starts_from_nothing() {
    let mut cluster = Cluster::new(5, 3);
    let broken = Fault { errors: 10, ..Fault::default() };
    for _ in 0..60 {
        cluster.second(&ORDINARY, &broken);
    }
    assert!(cluster.score(1).score.expect("known") > 90.0);
    let at_s = cluster.now_s + 1;
    cluster.pfm(1).observe(Sample { at_s, series: 2, ..Sample::default() });
    assert_eq!(cluster.pfm(1).score(at_s).score, None);
}

#[test]
fn a_cured_server_is_released_after_the_hold_and_not_before() {
    let mut pfm = Pfm::new(Config {
        server: 1,
        release: ReleasePolicy { hold_s: 60, ..ReleasePolicy::default() },
        ..Config::default()
    });
    let mut left = Vec::new();
    for at_s in 0..400 {
        let p50_us = if (100..160).contains(&at_s) { 80_300 } else { 300 };
        let reads =
            pfm::LatencyBucketSummary { count: 100, p50_us, p99_us: p50_us, mean_us: p50_us };
        pfm.observe(Sample { at_s, reads, bytes_read: 409_600, ..Sample::default() });
        for server in 2..4 {
            pfm.observe_peer(PeerSummary {
                server,
                at_s,
                read_p50_us: 330,
                read_count: 100,
                bytes_read: 409_600,
                ..PeerSummary::default()
            });
        }
        let score = pfm.score(at_s);
        if at_s == 150 {
            assert_eq!(score.mode, Some(Mode::FailSlow));
            let reason = &score.top_features[0].reason;
            assert_eq!(
                reason,
                "read p50 80 ms is 243× its peers' median 0.33 ms for 30 of the last 30 active s, 51 s of the last 10 min"
            );
        }
        left.push((score.score.unwrap_or(0.0), score.band));
    }
    assert!(left[159].1 >= Band::Shift, "{:?}", left[159]);
    assert!(left[200].0 < 35.0 && left[200].1 >= Band::Shift, "{:?}", left[200]);
    assert_eq!(left[399].1, Band::Quiet);
    assert_eq!(pfm.history(300).len(), 100);
}

#[test]
fn the_json_is_the_contracts() {
    let mut cluster = Cluster::new(9, 3);
    let unknown = serde_json::to_value(cluster.score(1)).expect("a score is JSON");
    for name in ["score", "score_low", "score_high", "probability", "mode", "eta_s"] {
        assert!(unknown[name].is_null(), "{name}: {unknown}");
    }
    for _ in 0..120 {
        cluster.second(&ORDINARY, &Fault::default());
    }
    let slow = Fault { added_us: 80_000.0, ..Fault::default() };
    for _ in 0..60 {
        cluster.second(&ORDINARY, &slow);
    }
    let json = serde_json::to_value(cluster.score(1)).expect("a score is JSON");
    let names = [
        "server",
        "score",
        "score_low",
        "score_high",
        "probability",
        "probability_low",
        "probability_high",
        "horizon_s",
        "eta_s",
        "mode",
        "modes",
        "top_features",
        "model_version",
        "sampled_at",
    ];
    let object = json.as_object().expect("an object");
    for name in names {
        assert!(object.contains_key(name), "{name}: {json}");
    }
    assert_eq!(json["server"], 1);
    assert_eq!(json["horizon_s"], 2_592_000);
    assert_eq!(json["mode"], "fail_slow");
    assert_eq!(json["modes"][0]["mode"], "fail_slow");
    assert_eq!(json["sampled_at"], "2027-01-15T08:03:00Z");
    for name in ["name", "value", "reason"] {
        assert!(!json["top_features"][0][name].is_null(), "{name}");
    }
    let back: Score = serde_json::from_value(json).expect("what we wrote we can read");
    assert_eq!(back.server, 1);
}
