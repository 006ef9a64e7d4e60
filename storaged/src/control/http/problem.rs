//! Problems: every error as problem details (RFC 9457).

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use smt::map::Refused;

use crate::control::ChangeError;

/// An error on its way to the caller.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    title: &'static str,
    detail: String,
    /// What a program may want to know beyond it.
    more: Option<(&'static str, Value)>,
}

impl Problem {
    pub fn new(status: StatusCode, title: &'static str, detail: impl Into<String>) -> Problem {
        Problem { status, title, detail: detail.into(), more: None }
    }

    pub fn with(self, key: &'static str, value: Value) -> Problem {
        Problem { more: Some((key, value)), ..self }
    }

    pub fn not_found(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, "not found", detail)
    }

    pub fn invalid(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "not valid", detail)
    }

    pub fn conflict(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::CONFLICT, "refused", detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Problem { status, title, detail, more } = self;
        let mut body = json!({
            "type": "about:blank",
            "title": title,
            "status": status.as_u16(),
            "detail": detail,
        });
        if let Some((key, value)) = more {
            body[key] = value;
        }
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        (status, kind, body.to_string()).into_response()
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Problem {
        let detail = refused.to_string();
        match refused {
            Refused::Conflict { .. } => Problem::conflict(detail),
            Refused::NotFound { .. } => Problem::not_found(detail),
            Refused::Exists { .. } => Problem::new(StatusCode::CONFLICT, "exists already", detail),
            Refused::Refused { .. } => Problem::conflict(detail),
            Refused::Attached { .. } => Problem::new(StatusCode::CONFLICT, "attached", detail),
            Refused::Moving { .. } => Problem::new(StatusCode::CONFLICT, "already moving", detail),
            Refused::NoRoom { .. } => {
                Problem::new(StatusCode::INSUFFICIENT_STORAGE, "no room", detail)
            }
        }
    }
}

impl From<ChangeError> for Problem {
    fn from(error: ChangeError) -> Problem {
        match error {
            ChangeError::Refused(refused) => refused.into(),
            ChangeError::Unreachable(reason) => Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "no quorum",
                format!(
                    "the servers that keep the map did not answer ({reason}); the change may or \
                     may not have been made: look, then try again"
                ),
            ),
        }
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Problem {
        Problem::invalid(rejection.body_text())
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Problem {
        Problem::not_found(rejection.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Problem {
        Problem::invalid(rejection.body_text())
    }
}
