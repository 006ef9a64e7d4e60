//! What an application does not notice, and the little that it does.

use std::time::{Duration, Instant};

use client_lib::{Cluster, Volume, VolumeError};
use smt::ids::{BlockRange, Session};

use crate::fake::{Fake, Fault, Seen};
use crate::plain::{noise, open};

fn ops(fake: &Fake, what: &str) -> Vec<Seen> {
    fake.seen().into_iter().filter(|seen| seen.what == what).collect()
}

#[test]
fn a_redirect_leads_to_the_new_primary() {
    let fake = Fake::start(2);
    let volume = open(&fake);
    volume.write(0, &[1; 4096]).wait().expect("the cluster is well");
    fake.move_to("vol0", fake.servers[1].0, false);
    volume.write(0, &[2; 4096]).wait().expect("a redirect is no error");
    let writes = ops(&fake, "write");
    let last = writes.last().expect("three were sent");
    assert_eq!(last.server, fake.servers[1].0);
    assert_eq!(last.op, writes[writes.len() - 2].op, "the same operation");
    assert!(fake.content("vol0")[..4096] == [2; 4096]);
}

#[test]
fn a_pushed_map_spares_the_redirect() {
    let fake = Fake::start(2);
    let volume = open(&fake);
    volume.write(0, &[1; 4096]).wait().expect("the cluster is well");
    fake.move_to("vol0", fake.servers[1].0, true);
    // The push is on its way on another connection than the write would take.
    std::thread::sleep(Duration::from_millis(700));
    volume.write(0, &[2; 4096]).wait().expect("the cluster is well");
    assert_eq!(ops(&fake, "write").len(), 2, "no detour");
}

#[test]
fn a_retry_is_waited_for() {
    let fake = Fake::start(1);
    let volume = open(&fake);
    for _ in 0..3 {
        fake.fault(Fault::Retry);
    }
    volume.write(0, &[7; 8192]).wait().expect("later is soon enough");
    let writes = ops(&fake, "write");
    assert_eq!(writes.len(), 4);
    assert!(writes.iter().all(|write| write.op == writes[0].op));
    assert_eq!(fake.faults_left(), 0);
}

#[test]
fn a_lost_connection_is_followed_by_the_same_operation_under_a_new_session() {
    for fault in [Fault::CutBefore, Fault::CutAfter] {
        let fake = Fake::start(1);
        let volume = open(&fake);
        fake.fault(fault);
        volume.write(4096, &[3; 4096]).wait().expect("it is sent again");
        let writes = ops(&fake, "write");
        let sent: Vec<_> = writes.iter().map(|write| (write.op, write.session)).collect();
        let op = writes[0].op;
        assert_eq!(sent, [(op, Session(1)), (op, Session(2))], "{fault:?}");
        assert!(fake.content("vol0")[4096..8192] == [3; 4096]);
    }
}

#[test]
fn a_partial_write_is_read_merged_and_written_as_one_block() {
    let fake = Fake::start(1);
    let volume = open(&fake);
    volume.write(0, &[1; 8192]).wait().expect("the cluster is well");
    let before = fake.seen().len();
    volume.write(4096 + 100, b"merged").wait().expect("the cluster is well");
    let after = fake.seen();
    let what: Vec<_> = after[before..].iter().map(|seen| (seen.what, seen.range)).collect();
    assert_eq!(what, [("read", BlockRange::new(1, 1)), ("write", BlockRange::new(1, 1))]);
    let content = fake.content("vol0");
    assert_eq!(&content[4196..4202], b"merged");
    assert!(content[..4196].iter().chain(&content[4202..8192]).all(|byte| *byte == 1));
}

#[test]
fn data_that_does_not_match_its_checksum_is_read_again_and_never_shown() {
    let fake = Fake::start(1);
    let volume = open(&fake);
    let data = noise(3, 16_384);
    volume.write(0, &data).wait().expect("the cluster is well");
    fake.fault(Fault::BadSum);
    let mut read = vec![0; data.len()];
    volume.read(0, &mut read).wait().expect("the second answer is good");
    assert!(read == data);
    assert_eq!(ops(&fake, "read").len(), 2);
    for _ in 0..3 {
        fake.fault(Fault::BadSum);
    }
    let mut untouched = [0xAB; 4096];
    let error = volume.read(0, &mut untouched).wait().expect_err("no good answer comes");
    assert_eq!(error, VolumeError::Io);
    assert_eq!(untouched, [0xAB; 4096]);
}

#[test]
fn an_error_of_the_disks_is_told_once_all_parts_have_ended() {
    let fake = Fake::start(1);
    let volume = open(&fake);
    volume.write(0, &[1; 4096]).wait().expect("the cluster is well");
    fake.fault(Fault::IoError);
    let error = volume.write(100, &[2; 20_000]).wait().expect_err("a part of it failed");
    assert_eq!(error, VolumeError::Io);
    volume.write(100, &[2; 20_000]).wait().expect("no lock was left behind");
    assert!(fake.content("vol0")[100..20_100].iter().all(|byte| *byte == 2));
}

#[test]
fn many_operations_survive_connections_that_are_cut_again_and_again() {
    let fake = Fake::start(3);
    let volume = open(&fake);
    let model = noise(11, 4 << 20);
    let writes: Vec<_> = (model.chunks(30_000).enumerate())
        .map(|(part, data)| {
            let offset = u64::try_from(part * 30_000).expect("small");
            let write = volume.write(offset, data);
            match part % 10 {
                3 => fake.fault(Fault::CutAfter),
                5 => fake.cut_all(),
                8 => {
                    let (server, _) = fake.servers[part / 10 % fake.servers.len()];
                    fake.move_to("vol0", server, part % 20 == 8);
                }
                _ => {}
            }
            write
        })
        .collect();
    for write in writes {
        write.wait().expect("nothing of this is an error");
    }
    assert!(fake.content("vol0") == model);
    let mut read = vec![0; model.len()];
    volume.read(0, &mut read).wait().expect("nothing of this is an error");
    assert!(read == model);
}

#[test]
fn a_server_that_says_nothing_is_left_for_the_one_the_map_names() {
    let fake = Fake::start(2);
    let volume = open(&fake);
    volume.write(0, &[1; 4096]).wait().expect("the cluster is well");
    let served = fake.maps_served();
    fake.freeze(fake.servers[0].0, true);
    let write = volume.write(0, &[2; 4096]);
    // Nobody pushes: the client has to ask for the map itself (C2).
    fake.move_to("vol0", fake.servers[1].0, false);
    let started = Instant::now();
    write.wait().expect("the other server takes it");
    assert!(fake.maps_served() > served);
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

#[test]
fn a_silent_connection_is_cut_and_dialled_again() {
    let fake = Fake::start(1);
    let volume = open(&fake);
    volume.write(0, &[1; 4096]).wait().expect("the cluster is well");
    let server = fake.servers[0].0;
    fake.freeze(server, true);
    let write = volume.write(0, &[2; 4096]);
    std::thread::sleep(Duration::from_millis(2500));
    fake.freeze(server, false);
    write.wait().expect("the server is back");
    let sessions: Vec<_> = ops(&fake, "write").iter().map(|write| write.session).collect();
    assert!(sessions.last() > sessions.first(), "{sessions:?}");
}

#[test]
fn an_open_volume_waits_for_a_cluster_that_is_away() {
    let fake = Fake::start(1);
    let volume = open(&fake);
    fake.set_http_down(true);
    fake.freeze(fake.servers[0].0, true);
    fake.cut_all();
    let write = volume.write(0, &[5; 4096]);
    std::thread::sleep(Duration::from_secs(2));
    fake.freeze(fake.servers[0].0, false);
    write.wait().expect("it waited");
    assert!(fake.content("vol0")[..4096] == [5; 4096]);
}

#[test]
fn a_deleted_volume_fails_what_is_under_way_and_what_comes_later() {
    let fake = Fake::start(1);
    let volume = open(&fake);
    volume.write(0, &[1; 4096]).wait().expect("the cluster is well");
    for _ in 0..3 {
        fake.fault(Fault::Delay(Duration::from_millis(200)));
    }
    let whole = volume.write(0, &[2; 4096]);
    let parts: Vec<_> = (0..4).map(|part| volume.write(part * 10, &[3; 10])).collect();
    fake.delete("vol0");
    for operation in parts.into_iter().chain([whole]) {
        match operation.wait() {
            Ok(()) | Err(VolumeError::Gone) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(volume.read(0, &mut [0; 1]).wait(), Err(VolumeError::Gone));
    // A new volume of that name is another volume.
    fake.create("vol0", 1 << 20);
    assert_eq!(volume.read(0, &mut [0; 1]).wait(), Err(VolumeError::Gone));
}

#[test]
fn two_volumes_share_their_connections_and_not_their_answers() {
    let fake = Fake::start(2);
    drop(open(&fake));
    fake.create("vol1", 1 << 20);
    let cluster = Cluster::connect([fake.url()]).expect("a good URL");
    let volumes =
        ["vol0", "vol1"].map(|name| Volume::open(&cluster, name).wait().expect("it was created"));
    let writes: Vec<_> = (0..100_u64)
        .map(|at| {
            let [even, odd] = &volumes;
            let (volume, byte) = if at % 2 == 0 { (even, 1) } else { (odd, 2) };
            volume.write(at * 4096, &[byte; 4096])
        })
        .collect();
    for write in writes {
        write.wait().expect("the cluster is well");
    }
    for (name, byte) in [("vol0", 1), ("vol1", 2)] {
        let content = fake.content(name);
        let count = content.chunks(4096).filter(|block| block.iter().all(|b| *b == byte)).count();
        assert_eq!(count, 50, "{name}");
    }
    let sessions: Vec<_> = fake.seen().iter().map(|seen| seen.session).collect();
    assert!(sessions.iter().all(|session| *session == Session(1)));
}
