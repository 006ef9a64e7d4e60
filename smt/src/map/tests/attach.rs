//! Attachments: who gets a volume, under which token, and what the others are told (S8, A1, A5).

use super::*;
use crate::map::attach::{OWNER_BYTES_MAX, SHARERS_MAX};

fn attach(client: u64, mode: AttachMode, expect_writer: Option<u64>) -> Command {
    Command::Attach {
        volume: "v".to_owned(),
        client: ClientId(client),
        owner: format!("host-{client}"),
        mode,
        expect_writer,
        at_unix_ms: 1_000 + client,
    }
}

fn exclusive(client: u64) -> Command {
    attach(client, AttachMode::Exclusive, None)
}

fn shared(client: u64) -> Command {
    attach(client, AttachMode::Shared, None)
}

/// By one who saw the volume attached under the token `seen`.
fn forced(client: u64, seen: u64) -> Command {
    attach(client, AttachMode::Exclusive, Some(seen))
}

fn detach(client: u64, writer: u64) -> Command {
    Command::Detach { volume: "v".to_owned(), client: ClientId(client), writer }
}

impl Bench {
    /// The token a client gets.
    fn token(&mut self, command: Command) -> u64 {
        match self.ok(command) {
            Reply::Attached { id, writer } => {
                assert_eq!(self.map.volume_by_name("v").map(|v| v.id), Some(id));
                writer
            }
            other => panic!("{other:?}"),
        }
    }

    /// Who has the volume.
    fn holders(&self) -> Vec<u64> {
        let volume = self.map.volume_by_name("v").expect("it is there");
        let clients = volume.attachment.iter().flat_map(|held| &held.clients);
        clients.map(|held| held.client.0).collect()
    }
}

fn is_held_by(why: &Refused, holder: u64) -> bool {
    match why {
        Refused::Attached { volume, client, owner } => {
            volume == "v" && client.0 == holder && *owner == format!("host-{holder}")
        }
        _ => false,
    }
}

#[test]
fn an_exclusive_attachment_keeps_others_out_until_it_is_given_back() {
    let mut bench = Bench::of_servers(2);
    bench.volume("v", 2, 2);
    assert_eq!(bench.token(exclusive(1)), 1);
    for other in [exclusive(2), shared(2), shared(1)] {
        let why = bench.no(other);
        assert!(is_held_by(&why, 1), "{why}");
    }
    bench.ok(detach(1, 1));
    assert_eq!(bench.holders(), []);
    assert_eq!(bench.token(exclusive(2)), 2, "a token is not given out again");
}

#[test]
fn who_asks_twice_gets_the_same_token_and_shows_once() {
    let mut bench = Bench::of_servers(2);
    bench.volume("v", 1, 2);
    assert_eq!(bench.token(exclusive(1)), 1);
    assert_eq!(bench.token(exclusive(1)), 1);
    assert_eq!(bench.token(forced(1, 0)), 1, "a take-over whose answer was lost");
    assert_eq!(bench.holders(), [1]);
    let held = bench.map.volume_by_name("v").and_then(|v| v.attachment.clone());
    assert_eq!(held.map(|h| h.clients[0].at_unix_ms), Some(1_001), "it counts from the first");
}

#[test]
fn a_take_over_has_a_new_token_and_ends_every_older_attachment() {
    let mut bench = Bench::of_servers(2);
    bench.volume("v", 1, 2);
    bench.token(shared(1));
    bench.token(shared(2));
    assert_eq!(bench.token(forced(3, 1)), 2);
    assert_eq!(bench.holders(), [3]);
    // The ones before know nothing of it yet, and give back what they no longer have.
    bench.ok(detach(1, 1));
    bench.ok(detach(3, 1));
    assert_eq!(bench.holders(), [3]);
    // A forced sharer takes over from sharers, too: it does not join them.
    bench.ok(detach(3, 2));
    assert_eq!(bench.token(shared(1)), 3);
    assert_eq!(bench.token(attach(2, AttachMode::Shared, Some(3))), 4);
    assert_eq!(bench.holders(), [2]);
}

/// A server was stopped with the take-over in its hands, and goes on when others have had the volume.
#[test]
fn a_take_over_that_comes_late_puts_out_nobody_but_whom_its_sender_saw() {
    let mut bench = Bench::of_servers(2);
    bench.volume("v", 1, 2);
    bench.token(exclusive(1));
    let late = forced(2, 1);
    assert_eq!(bench.token(forced(3, 1)), 2);
    let why = bench.no(late.clone());
    assert!(is_held_by(&why, 3), "{why}");
    assert_eq!(bench.holders(), [3]);
    // Nor one who took the volume when it was free.
    bench.ok(detach(3, 2));
    assert_eq!(bench.token(exclusive(1)), 3);
    assert!(is_held_by(&bench.no(late.clone()), 1));
    // Nobody is put out where nobody has it.
    bench.ok(detach(1, 3));
    assert_eq!(bench.token(late), 4);
}

#[test]
fn sharers_have_one_token_until_the_last_has_left() {
    let mut bench = Bench::of_servers(2);
    bench.volume("v", 1, 2);
    for client in 1..=3 {
        assert_eq!(bench.token(shared(client)), 1);
    }
    let why = bench.no(exclusive(4));
    assert!(is_held_by(&why, 1), "{why}");
    bench.ok(detach(1, 1));
    bench.ok(detach(3, 1));
    assert_eq!(bench.holders(), [2]);
    assert_eq!(bench.token(shared(4)), 1);
    bench.ok(detach(2, 1));
    bench.ok(detach(4, 1));
    assert_eq!(bench.holders(), []);
    assert_eq!(bench.token(shared(1)), 2);
}

#[test]
fn sharers_and_the_names_of_owners_are_bounded() {
    let mut bench = Bench::of_servers(2);
    bench.volume("v", 1, 2);
    let most = u64::try_from(SHARERS_MAX).expect("few");
    for client in 1..=most {
        bench.token(shared(client));
    }
    assert!(matches!(bench.no(shared(most + 1)), Refused::Refused { .. }));
    let mut command = forced(1, 1);
    if let Command::Attach { owner, .. } = &mut command {
        *owner = "x".repeat(OWNER_BYTES_MAX + 1);
    }
    assert!(matches!(bench.no(command), Refused::Refused { .. }));
}

#[test]
fn a_volume_that_is_not_there_cannot_be_attached_nor_given_back() {
    let mut bench = Bench::of_servers(2);
    assert!(matches!(bench.no(exclusive(1)), Refused::NotFound { .. }));
    assert!(matches!(bench.no(detach(1, 1)), Refused::NotFound { .. }));
}

#[test]
fn an_attached_volume_is_deleted_by_force_alone() {
    let mut bench = Bench::of_servers(2);
    bench.volume("v", 1, 2);
    bench.token(exclusive(1));
    let delete = |force| Command::DeleteVolume { name: "v".to_owned(), force };
    let why = bench.no(delete(false));
    assert!(is_held_by(&why, 1), "{why}");
    bench.ok(delete(true));
    assert!(bench.map.volume_by_name("v").is_none());
    bench.volume("v", 1, 2);
    bench.token(exclusive(1));
    bench.ok(detach(1, 1));
    bench.ok(delete(false));
}

/// A2: a primary of an epoch made after an attachment knows its token, whoever told it of the
/// config; one that serves already learns it from the fence.
#[test]
fn the_token_is_in_every_config_made_after_it_was_given_out() {
    let mut bench = Bench::of_servers(3);
    let segments = bench.volume("v", 2, 2);
    bench.token(exclusive(1));
    assert_eq!(bench.config(segments[0]).writer, 0, "the epoch that serves stays as it is");
    let server = bench.backup(segments[0]);
    bench.ok(Command::Evict { segment: segments[0], expect: Epoch(1), server });
    assert_eq!(bench.config(segments[0]).writer, 1);
    bench.token(forced(2, 1));
    bench.token(forced(3, 2));
    assert_eq!((bench.config(segments[0]).writer, bench.config(segments[1]).writer), (1, 0));
    // A new life of a server makes a new epoch of all it has, as does the end of a migration.
    bench.ok(Command::RegisterServer(server_of(bench.config(segments[1]).primary)));
    assert_eq!(bench.config(segments[1]).writer, 3);
    let to = bench.outsider(segments[0]);
    let migration = bench.start(segments[0], None, to);
    bench.promote(segments[0], migration);
    assert_eq!(bench.config(segments[0]).writer, 3);
    // Nobody has the volume, and the token of who had it is no better for that.
    bench.ok(detach(3, 3));
    let server = bench.backup(segments[0]);
    let expect = bench.epoch(segments[0]);
    bench.ok(Command::Evict { segment: segments[0], expect, server });
    assert_eq!(bench.config(segments[0]).writer, 3);
}

/// The second life of a server.
fn server_of(id: ServerId) -> Server {
    super::server(id.0, 2)
}

#[test]
fn attachments_come_back_with_a_map_that_was_saved() {
    let mut bench = Bench::of_servers(2);
    bench.volume("v", 1, 2);
    bench.token(shared(1));
    bench.token(shared(2));
    let bytes = postcard::to_stdvec(&bench.map).expect("a map can be saved");
    let map: Map = postcard::from_bytes(&bytes).expect("and read back");
    assert_eq!(map, bench.map);
    bench.map = map;
    assert_eq!((bench.holders(), bench.token(forced(3, 1))), (vec![1, 2], 2));
}
