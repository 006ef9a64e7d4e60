//! The commands that talk to a running cluster, one file per noun.
//!
//! Invariant: under `--json` a command prints what the server sent, unchanged; tables are made
//! from the same answer. A command that fails prints nothing on stdout that looks like success.

pub mod cluster;
pub mod fault;
pub mod force;
pub mod migration;
pub mod score;
pub mod scrub;
pub mod segment;
pub mod server;
pub mod status;
pub mod volume;

use serde_json::{Value, json};

use crate::client::Client;
use crate::error::Error;
use crate::model::{Id, Server, Servers};
use crate::output::Output;
use crate::url::BaseUrl;

/// What every command works with.
pub struct Context {
    pub client: Client,
    pub output: Output,
}

impl Context {
    /// Every server, as the cluster lists them.
    fn servers(&self) -> Result<Vec<Server>, Error> {
        let servers: Servers = self.client.get_as("list servers", "/v1/servers")?;
        Ok(servers.servers)
    }

    fn server(&self, id: &Id) -> Result<Server, Error> {
        let found = self.servers()?.into_iter().find(|server| server.id == *id);
        found.ok_or_else(|| Error::NoSuch { what: "server", name: id.to_string() })
    }

    /// A client that talks to this server and no other: scores and faults are its own business.
    fn client_of(&self, id: &Id) -> Result<Client, Error> {
        let server = self.server(id)?;
        let url: Option<BaseUrl> = server.http.as_deref().and_then(|http| http.parse().ok());
        let url = url.ok_or_else(|| Error::BadAnswer {
            doing: format!("find server {id}"),
            url: "/v1/servers".to_owned(),
            why: format!("its http address is {:?}", server.http.unwrap_or_default()),
        })?;
        Ok(Client::new(vec![url]))
    }

    /// Confirms a change: the server's answer under `--json` (or what was done, when it sent
    /// none), a sentence for people.
    fn confirm(&self, answer: &Value, done: &Value, sentence: &str) -> Result<(), Error> {
        let shown = if answer.is_object() { answer } else { done };
        self.output.show(shown, || sentence.to_owned())
    }

    /// Sends an order about one server and confirms it.
    fn order_server(&self, id: &Id, verb: &str, sentence: &str) -> Result<(), Error> {
        let answer = self.post_server(id, verb)?;
        self.confirm(&answer, &json!({"server": id.0, "ordered": verb}), sentence)
    }

    fn post_server(&self, id: &Id, verb: &str) -> Result<Value, Error> {
        let route = format!("/v1/servers/{id}/{verb}");
        self.client.post(&format!("{verb} server {id}"), &route, &json!({}))
    }
}
