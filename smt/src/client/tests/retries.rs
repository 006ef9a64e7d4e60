//! Lost answers, refusals, bad data (C3, C5).

use super::*;

#[test]
fn what_was_on_a_broken_connection_is_sent_again_on_the_next_one() {
    let mut bench = Bench::new();
    bench.write(1, 0, &[1]);
    bench.read(2, 16, 1);
    let sent = bench.sent();
    bench.down(1, 1);
    assert!(bench.actions.is_empty());
    bench.up(1, 2);
    let again = bench.sent();
    assert_eq!(again.len(), 2);
    for (old, new) in sent.iter().zip(&again) {
        assert_eq!((new.0, new.1), (1, 2), "on the new session");
        assert_eq!(old.2, new.2, "the same request under the same id");
    }
    bench.done(&sent[0]);
    assert!(bench.actions.is_empty(), "nothing comes from a connection that fell");
    bench.done(&again[0]);
    assert_eq!(bench.events(), [done(1)]);
}

#[test]
fn a_link_that_was_replaced_without_a_word_counts_as_fallen() {
    let mut bench = Bench::new();
    bench.write(1, 0, &[1]);
    bench.sent();
    bench.up(1, 3);
    assert_eq!(bench.one().1, 3);
    bench.up(1, 2);
    bench.down(1, 1);
    bench.read(2, 0, 1);
    assert_eq!(bench.one().1, 3, "late words of older connections change nothing");
}

#[test]
fn without_a_link_it_waits_and_asks_the_map() {
    let mut bench = Bench::unlinked(ClientSettings::default(), false);
    bench.write(1, 0, &[1]);
    bench.pass(3_500);
    let pulls = bench.events();
    assert_eq!(pulls, [ClientAction::Pull, ClientAction::Pull, ClientAction::Pull]);
    bench.up(1, 1);
    assert_eq!(bench.sent().len(), 1);
}

#[test]
fn an_unanswered_request_makes_it_ask_the_map_and_send_again() {
    let mut bench = Bench::new();
    bench.write(1, 0, &[1]);
    let first = bench.one();
    bench.pass(990);
    assert!(bench.actions.is_empty());
    bench.pass(100);
    let (pulls, sends): (Vec<_>, Vec<_>) =
        bench.actions.drain(..).partition(|a| matches!(a, ClientAction::Pull));
    assert_eq!((pulls.len(), sends.len()), (1, 1));
    let ClientAction::Send { request, .. } = &sends[0] else { panic!("{sends:?}") };
    assert_eq!(*request, first.2);
    bench.pass(10_000);
    let sends = bench.actions.iter().filter(|a| matches!(a, ClientAction::Send { .. })).count();
    assert!((2..=4).contains(&sends), "copies do not pile up at a server that is stopped: {sends}");
    bench.actions.clear();
    bench.done(&first);
    assert_eq!(bench.events(), [done(1)]);
    bench.idle();
}

#[test]
fn a_refused_request_is_sent_again_later_and_later() {
    let mut bench = Bench::new();
    bench.write(1, 0, &[1]);
    let mut sent = bench.one();
    let mut rests = Vec::new();
    for _ in 0..9 {
        let from = bench.now;
        bench.answer(&sent, ReplyBody::Retry { after_ns: 0 });
        while bench.actions.is_empty() {
            bench.now = bench.client.next_wake().expect("it rests");
            bench.handle(ClientEvent::Tick);
        }
        rests.push(bench.now.since(from) / MS);
        bench.actions.retain(|a| !matches!(a, ClientAction::Pull));
        sent = bench.one();
    }
    assert_eq!(rests, [1, 2, 4, 8, 16, 32, 64, 100, 100]);
    bench.done(&sent);
    assert_eq!(bench.events(), [done(1)]);
    bench.idle();
}

#[test]
fn a_refusal_rests_as_long_as_the_server_says_within_reason() {
    let mut bench = Bench::new();
    for (after_ns, rest_ns) in [(20 * MS, 20 * MS), (u64::MAX, 100 * MS)] {
        bench.read(1, 0, 1);
        let sent = bench.one();
        bench.answer(&sent, ReplyBody::Retry { after_ns });
        let rest = bench.client.rests.first().expect("it rests").0;
        assert_eq!(rest, bench.now.after(rest_ns));
        bench.now = rest;
        bench.handle(ClientEvent::Tick);
        let again = bench.one();
        let reply = data(&again.2, &[1]);
        bench.answer(&again, reply);
        bench.events();
    }
}

#[test]
fn a_resting_request_goes_at_once_when_the_primary_moves() {
    let mut bench = Bench::new();
    bench.write(1, 0, &[1]);
    let sent = bench.one();
    bench.answer(&sent, ReplyBody::Retry { after_ns: 100 * MS });
    bench.delta(10, 11, vec![config(1, 2, 2)]);
    assert_eq!(bench.one().0, 2);
    bench.pass(150);
    assert!(bench.actions.is_empty(), "and is not sent a second time when its rest is over");
}

#[test]
fn refusals_without_end_make_it_ask_the_map() {
    let mut bench = Bench::new();
    bench.write(1, 0, &[1]);
    let mut pulls = 0;
    for _ in 0..400 {
        for action in std::mem::take(&mut bench.actions) {
            match action {
                ClientAction::Send { server, session, request } => {
                    let sent = (server.0, session.0, request);
                    bench.answer(&sent, ReplyBody::Retry { after_ns: 0 });
                }
                ClientAction::Pull => pulls += 1,
                other => panic!("{other:?}"),
            }
        }
        bench.pass(10);
    }
    assert!((3..=4).contains(&pulls), "one a second: {pulls}");
}

#[test]
fn data_that_fails_its_checksum_is_read_again_and_never_handed_up() {
    let mut bench = Bench::new();
    bench.read(1, 0, 2);
    let sent = bench.one();
    let mut bad = data(&sent.2, &[1, 2]);
    if let ReplyBody::Data { sums, .. } = &mut bad {
        sums[1] ^= 1;
    }
    bench.answer(&sent, bad.clone());
    assert!(bench.actions.is_empty());
    bench.pass(5);
    let again = bench.one();
    let good = data(&again.2, &[1, 2]);
    bench.answer(&again, good);
    let runs: Runs<Blocks> = std::iter::once((0, Blocks(vec![1, 2]))).collect();
    assert_eq!(bench.events(), [complete(1, OpResult::Data(runs))]);
    assert_eq!(bench.client.mismatches(), 1);

    bench.read(2, 0, 2);
    for _ in 0..3 {
        bench.pass(50);
        let sent = bench.one();
        let mut short = data(&sent.2, &[1]);
        if let ReplyBody::Data { sums, .. } = &mut short {
            sums.truncate(1);
        }
        bench.answer(&sent, short);
    }
    assert_eq!(bench.events(), [failed(2, ClientError::Io)], "three times is enough");
    bench.idle();
}

#[test]
fn zeroes_are_taken_for_blocks_without_data_and_only_for_those() {
    let mut bench = Bench::new();
    for (values, good) in [([0, 0], true), ([0, 3], false)] {
        bench.read(1, 0, 2);
        let sent = bench.one();
        let body = ReplyBody::Data {
            data: Blocks(values.to_vec()),
            sums: Sums::from_slice(&[ZERO_SUM, ZERO_SUM]),
        };
        bench.answer(&sent, body);
        assert_eq!(!bench.events().is_empty(), good);
    }
}

#[test]
fn a_read_that_fails_is_reported_at_once_and_a_write_once_all_of_it_has_ended() {
    let mut bench = Bench::new();
    bench.read(1, 7, 2);
    let sent = bench.sent();
    bench.answer(&sent[0], ReplyBody::IoError);
    assert_eq!(bench.events(), [failed(1, ClientError::Io)]);
    let late = data(&sent[1].2, &[8]);
    bench.answer(&sent[1], late);
    assert!(bench.actions.is_empty());
    bench.write(2, 7, &[1, 2]);
    let sent = bench.sent();
    bench.answer(&sent[0], ReplyBody::IoError);
    assert!(bench.actions.is_empty(), "the other half may still happen");
    bench.pass(1_500);
    bench.actions.clear();
    bench.done(&sent[1]);
    assert_eq!(bench.events(), [failed(2, ClientError::Io)]);
    bench.idle();
}

#[test]
fn a_write_is_not_failed_while_another_copy_of_it_may_happen() {
    let mut bench = Bench::new();
    bench.write(1, 0, &[1]);
    let sent = bench.one();
    bench.pass(1_100);
    bench.actions.clear();
    bench.answer(&sent, ReplyBody::IoError);
    assert!(bench.events().is_empty(), "two copies were sent, one was refused");
    bench.done(&sent);
    assert_eq!(bench.events(), [done(1)]);
}

#[test]
fn a_copys_success_counts_while_the_other_ones_refusal_rests() {
    let mut bench = Bench::new();
    bench.write(1, 0, &[1]);
    let sent = bench.one();
    bench.pass(1_100);
    bench.actions.clear();
    bench.answer(&sent, ReplyBody::Retry { after_ns: 50 * MS });
    bench.done(&sent);
    assert_eq!(bench.events(), [done(1)]);
    bench.pass(100);
    assert!(bench.actions.is_empty());
    bench.idle();
}

#[test]
fn a_failed_operation_starts_no_further_pieces() {
    let settings = ClientSettings { window: 1, ..ClientSettings::default() };
    let mut bench = Bench::with(settings);
    bench.submit(1, VolumeRequest::Zero { first_block: 0, count: 32 });
    let first = bench.one();
    bench.answer(&first, ReplyBody::Invalid);
    assert_eq!(bench.events(), [failed(1, ClientError::Invalid)]);
    bench.idle();
}

#[test]
fn a_fenced_attachment_stops_for_good() {
    let mut bench = Bench::new();
    bench.write(1, 0, &[1]);
    bench.read(2, 8, 1);
    bench.submit(3, VolumeRequest::Hold { first_block: 0, count: 1 });
    let sent = bench.sent();
    bench.answer(&sent[0], ReplyBody::Fenced);
    let all = [1, 2, 3].map(|op| failed(op, ClientError::Fenced));
    assert_eq!(bench.events(), all);
    bench.handle(ClientEvent::Merged { op: OpId(3), data: Blocks(vec![1]) });
    bench.handle(ClientEvent::Release { op: OpId(3) });
    bench.up(1, 9);
    bench.pass(2_000);
    assert!(bench.actions.is_empty());
    bench.write(4, 0, &[1]);
    assert_eq!(bench.events(), [failed(4, ClientError::Fenced)]);
    bench.idle();
}

#[test]
fn an_answer_that_does_not_fit_its_question_is_not_believed() {
    let mut bench = Bench::new();
    bench.read(1, 0, 1);
    bench.write(2, 8, &[1]);
    let sent = bench.sent();
    bench.answer(&sent[0], ReplyBody::Done);
    let foreign = data(&sent[0].2, &[1]);
    bench.answer(&sent[1], foreign);
    assert!(bench.actions.is_empty());
    let mut strange = sent[1].clone();
    strange.2.segment = SegmentId(3);
    bench.done(&strange);
    strange.2.op = OpId(999);
    bench.done(&strange);
    assert!(bench.actions.is_empty());
    bench.pass(5);
    assert_eq!(bench.sent().len(), 2, "both are asked again");
}
