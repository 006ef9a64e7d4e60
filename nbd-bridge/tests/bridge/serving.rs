//! What a client gets served, also while the cluster is not well.

use std::io::{Read, Write};
use std::time::Duration;

use crate::fake::{Fake, Fault};
use crate::nbd::*;

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

#[test]
fn what_was_written_is_read_back_by_another_connection() {
    let fake = Fake::start(2);
    fake.create("vol0", 64 << 20);
    let bridge = Bridge::start(&fake, &[]);
    let mut writer = Client::open(&bridge.socket, "vol0");
    let mut reader = Client::open(&bridge.socket, "vol0");
    assert_eq!(writer.size, 64 << 20);
    assert!(writer.flags & (1 << 8) != 0, "CAN_MULTI_CONN");
    let ranges = [(0, 4096), (512, 512), (4000, 200), (1_048_000, 2000), (777, 5 << 20)];
    for (seed, (offset, length)) in (1..).zip(ranges) {
        let data = noise(seed, length);
        assert_eq!(writer.write(offset, &data), 0);
        assert!(reader.read(offset, length).data == data, "{length} at {offset}");
    }
    let large = noise(99, 32 << 20);
    assert_eq!(writer.write(1 << 20, &large), 0);
    assert!(reader.read(1 << 20, 32 << 20).data == large);
    assert_eq!(writer.ask(0, FLUSH, 0, 0), 0);
    assert_eq!(writer.ask(FUA, WRITE_ZEROES, 1 << 20, 8 << 20), 0);
    assert!(reader.read(1 << 20, 8 << 20).data.iter().all(|byte| *byte == 0));
    assert_eq!(writer.ask(0, TRIM, 0, 64 << 20), 0, "all of it at once");
    assert!(reader.read(0, 32 << 20).data.iter().all(|byte| *byte == 0));
    let clients: std::collections::BTreeSet<_> =
        fake.seen().iter().map(|seen| seen.client).collect();
    assert_eq!(clients.len(), 1, "all connections share one attachment");
}

#[test]
fn replies_find_their_requests_whatever_their_order() {
    let fake = Fake::start(1);
    fake.create("vol0", 8 << 20);
    let bridge = Bridge::start(&fake, &[]);
    let mut client = Client::open(&bridge.socket, "vol0");
    for block in 0..256 {
        client.send_write(block, block * 4096, &noise(block + 1, 4096));
    }
    let mut answered: Vec<u64> = (0..256).map(|_| client.receive().cookie).collect();
    answered.sort_unstable();
    assert_eq!(answered, (0..256).collect::<Vec<_>>());
    for block in 0..256 {
        client.send(0, READ, block, block * 4096, 4096);
    }
    for _ in 0..256 {
        let Reply { cookie, error, data } = client.receive();
        assert_eq!(error, 0);
        assert!(data == noise(cookie + 1, 4096), "block {cookie}");
    }
}

#[test]
fn a_client_that_only_sends_is_held_back_and_loses_nothing() {
    let fake = Fake::start(1);
    fake.create("vol0", 8 << 20);
    let bridge = Bridge::start(&fake, &[]);
    let mut client = Client::open(&bridge.socket, "vol0");
    let mut sender = Client {
        wire: client.wire.try_clone().expect("descriptors are left"),
        size: client.size,
        flags: client.flags,
    };
    // Replies of 1 GiB in all, of which nobody reads a byte at first.
    let count = 1024_u64;
    let sending = std::thread::spawn(move || {
        for cookie in 0..count {
            sender.send(0, READ, cookie, 0, 1 << 20);
        }
    });
    std::thread::sleep(Duration::from_secs(1));
    let status = std::fs::read_to_string(format!("/proc/{}/status", bridge.pid()));
    let status = status.expect("it runs");
    let resident = status.lines().find(|line| line.starts_with("VmRSS:")).expect("linux tells");
    let kib: u64 = resident.split_whitespace().nth(1).expect("a number").parse().expect("one");
    assert!(kib < 400 << 10, "the bridge holds {kib} KiB for one client");
    for _ in 0..count {
        let reply = client.receive();
        assert_eq!((reply.error, reply.data.len()), (0, 1 << 20));
    }
    sending.join().expect("everything was taken");
}

#[test]
fn errors_are_the_requests_own_and_the_connection_lives_on() {
    let fake = Fake::start(1);
    fake.create("vol0", 1 << 20);
    let bridge = Bridge::start(&fake, &[]);
    let mut client = Client::open(&bridge.socket, "vol0");
    assert_eq!(client.read((1 << 20) - 1, 2).error, 22, "EINVAL");
    assert_eq!(client.write((1 << 20) - 1, &[1, 2]), 28, "ENOSPC");
    assert_eq!(client.ask(0, 42, 0, 0), 22, "EINVAL");
    client.send(0, WRITE, 5, 0, 33 << 20);
    client.wire.write_all(&vec![0; 33 << 20]).expect("it is read and thrown away");
    assert_eq!(client.receive().error, 22, "EINVAL");
    fake.fault(Fault::IoError);
    assert_eq!(client.read(0, 4096).error, 5, "EIO");
    assert_eq!(client.write(0, &[1; 4096]), 0);
}

#[test]
fn a_client_sees_no_error_when_servers_move_and_die() {
    let fake = Fake::start(3);
    fake.create("vol0", 4 << 20);
    let bridge = Bridge::start(&fake, &[]);
    let mut client = Client::open(&bridge.socket, "vol0");
    let model = noise(42, 4 << 20);
    for (part, data) in model.chunks(10_000).enumerate() {
        let offset = u64::try_from(part * 10_000).expect("small");
        match part % 40 {
            5 => fake.fault(Fault::CutAfter),
            15 => fake.cut_all(),
            25 => fake.move_to("vol0", fake.servers[part / 40 % 3].0, false),
            35 => fake.fault(Fault::Retry),
            _ => {}
        }
        assert_eq!(client.write(offset, data), 0, "part {part}");
    }
    assert!(client.read(0, 4 << 20).data == model);
    assert!(fake.content("vol0") == model);
}

#[test]
fn a_volume_made_later_is_served_without_a_restart_and_an_unknown_one_refused() {
    let fake = Fake::start(1);
    fake.create("vol0", 1 << 20);
    let bridge = Bridge::start(&fake, &[]);
    let mut wire = connect(&bridge.socket);
    greet(&mut wire);
    option(&mut wire, 7, &go_data("later"));
    assert_eq!(option_reply(&mut wire).0, 0x8000_0006, "ERR_UNKNOWN");
    fake.create("later", 2 << 20);
    assert_eq!(Client::open(&bridge.socket, "later").size, 2 << 20);
    let mut wire = connect(&bridge.socket);
    greet(&mut wire);
    option(&mut wire, 3, &[]);
    for name in ["later", "vol0"] {
        let (kind, entry) = option_reply(&mut wire);
        let length: u32 = name.len().try_into().expect("short");
        assert_eq!(kind, 2);
        assert_eq!(entry[..4], length.to_be_bytes());
        assert!(entry[4..].starts_with(name.as_bytes()), "{entry:?}");
    }
    assert_eq!(option_reply(&mut wire).0, 1);
}

#[test]
fn only_chosen_volumes_are_exported_and_read_only_means_it() {
    let fake = Fake::start(1);
    fake.create("vol0", 1 << 20);
    fake.create("vol1", 1 << 20);
    let bridge = Bridge::start(&fake, &["--export", "vol1", "--read-only"]);
    let mut wire = connect(&bridge.socket);
    greet(&mut wire);
    option(&mut wire, 7, &go_data("vol0"));
    assert_eq!(option_reply(&mut wire).0, 0x8000_0006, "ERR_UNKNOWN");
    // The empty name is the only export.
    let mut client = Client::open(&bridge.socket, "");
    assert!(client.flags & 2 != 0, "READ_ONLY");
    assert_eq!(client.write(0, &[1; 512]), 1, "EPERM");
    assert_eq!(client.read(0, 512).data, [0; 512]);
}

#[test]
fn a_disconnect_waits_for_what_was_asked_before_it() {
    let fake = Fake::start(1);
    fake.create("vol0", 1 << 20);
    let bridge = Bridge::start(&fake, &[]);
    let mut client = Client::open(&bridge.socket, "vol0");
    fake.fault(Fault::Delay(Duration::from_millis(300)));
    for block in 0..8 {
        client.send_write(block, block * 4096, &[7; 4096]);
    }
    client.send(0, DISC, 9, 0, 0);
    let mut answered: Vec<u64> = (0..8).map(|_| client.receive().cookie).collect();
    answered.sort_unstable();
    assert_eq!(answered, (0..8).collect::<Vec<_>>());
    assert!(client.is_closed());
}

#[test]
fn a_client_that_hangs_up_anywhere_leaves_nothing_behind() {
    let fake = Fake::start(1);
    fake.create("vol0", 1 << 20);
    let mut bridge = Bridge::start(&fake, &[]);
    let descriptors =
        |pid: u32| std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count();
    let mut steady = Client::open(&bridge.socket, "vol0");
    assert_eq!(steady.write(0, &[1; 4096]), 0);
    let before = descriptors(bridge.pid());
    for round in 0..40 {
        let mut wire = connect(&bridge.socket);
        match round % 8 {
            0 => {}
            1 => greet(&mut wire),
            2 => {
                // GO, and gone before the answer.
                greet(&mut wire);
                option(&mut wire, 7, &go_data("vol0"));
            }
            3 => {
                greet(&mut wire);
                option(&mut wire, 1, b"vol0");
                wire.half_close();
            }
            4 => {
                let mut client = Client::go(wire, "vol0");
                client.send(0, WRITE, 1, 0, 1 << 20);
                client.wire.write_all(&[0; 1000]).expect("half a payload");
            }
            5 => {
                let mut client = Client::go(wire, "vol0");
                fake.fault(Fault::Delay(Duration::from_millis(20)));
                for cookie in 0..100 {
                    client.send(0, READ, cookie, 0, 1 << 20);
                }
            }
            6 => {
                let mut client = Client::go(wire, "vol0");
                client.wire.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("nonsense");
                assert!(client.is_closed());
            }
            _ => {
                let mut client = Client::go(wire, "vol0");
                client.send(0, READ, 1, 0, 1 << 20);
                client.wire.read_exact(&mut [0; 100]).expect("a part of the reply");
            }
        }
    }
    wait_until("the end of every connection", || descriptors(bridge.pid()) <= before);
    assert_eq!(steady.read(0, 4096).error, 0);
    assert!(bridge.is_running());
}
