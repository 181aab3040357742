//! Who a request is from, and whether it may come in: asked once, before the router sees it.
//!
//! Everything needs a key when the server has keys, but the three health checks, which say less without one. Whatever needs
//! a key counts against its limit of requests, too. Handlers take the [`Sender`] ([`Admitted`]) and ask it about topics.

use super::{
    error::{Kind, Problem},
    metrics::Route,
    rate_limit::Sender,
};
use crate::{
    access::{Caller, Gate, Scope},
    store::TopicFilter,
};
use axum::{
    body::Body,
    extract::FromRequestParts,
    http::{Request, header, request},
};
use std::{convert::Infallible, sync::Arc};

/// Lets a request in. Says whose it is, if it counts against somebody's limits; otherwise it is only noted in the request.
pub(super) fn admit(
    gate: &Gate,
    route: Route,
    request: &mut Request<Body>,
) -> (Option<Arc<Sender>>, Result<(), Problem>) {
    let authorization = request.headers().get(header::AUTHORIZATION);
    let caller = gate.admit(authorization.map(header::HeaderValue::as_bytes));
    let need = needed(route);
    match (&need, caller) {
        (Need::Nothing, caller) => {
            if let Ok(caller) = caller {
                note(request, Arc::new(Sender::uncounted(caller)));
            }
            (None, Ok(()))
        }
        (_, Err(refused)) => (None, Err(Problem::new(Kind::NoValidKey, refused.to_string()))),
        (_, Ok(caller)) => {
            let (sender, within_limit) = Sender::of_request(caller);
            let admitted = within_limit.and_then(|()| check_scope(&need, &sender.caller));
            (Some(Arc::new(sender)), admitted)
        }
    }
}

/// Notes from whom a request is, for its handler.
pub(super) fn note(request: &mut Request<Body>, sender: Arc<Sender>) {
    request.extensions_mut().insert(Known(sender));
}

/// Refuses what the key does not allow.
fn check_scope(need: &Need, caller: &Caller) -> Result<(), Problem> {
    match need {
        Need::Nothing | Need::Key => Ok(()),
        Need::Scope(scope) if caller.may(*scope) => Ok(()),
        Need::EveryTopic(scope) if caller.may(*scope) && caller.has_every_topic() => Ok(()),
        Need::Scope(scope) => Err(Problem::new(
            Kind::NotAllowed,
            format!("the key lacks the scope {scope}"),
        )),
        Need::EveryTopic(scope) => Err(Problem::new(
            Kind::NotAllowed,
            format!(
                "this is about all topics together; it takes a key with the scope {scope} for every topic"
            ),
        )),
    }
}

/// What a route asks for.
enum Need {
    Nothing,
    Key,
    Scope(Scope),
    /// The scope, for every topic.
    EveryTopic(Scope),
}

fn needed(route: Route) -> Need {
    match route {
        Route::Health | Route::Ready | Route::Live => Need::Nothing,
        Route::Publish | Route::PublishBatch => Need::Scope(Scope::Publish),
        Route::Events | Route::Event | Route::Topics | Route::Stats => Need::Scope(Scope::Read),
        // They count what all topics share.
        Route::Metrics => Need::EveryTopic(Scope::Read),
        Route::Home | Route::OpenApi | Route::Redoc | Route::Docs | Route::Problem | Route::Other => {
            Need::Key
        }
    }
}

/// From whom a request is. A request without it is from somebody who has no valid key.
#[derive(Clone)]
struct Known(Arc<Sender>);

/// Who asks, for the handlers of routes that need a key.
pub(super) struct Admitted(pub(super) Arc<Sender>);

impl<S: Sync> FromRequestParts<S> for Admitted {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut request::Parts, _: &S) -> Result<Self, Problem> {
        sender(parts)
            .map(|sender| Self(Arc::clone(sender)))
            .ok_or_else(|| Problem::new(Kind::NoValidKey, crate::access::Refused.to_string()))
    }
}

/// Whether the answer to a request may say more than everyone may know.
pub(super) struct Detailed(pub(super) bool);

impl<S: Sync> FromRequestParts<S> for Detailed {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut request::Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(sender(parts).is_some()))
    }
}

fn sender(parts: &request::Parts) -> Option<&Arc<Sender>> {
    parts.extensions.get().map(|Known(sender)| sender)
}

/// The topics that a caller is shown.
pub(super) fn shown_to(caller: &Caller) -> TopicFilter {
    if caller.has_every_topic() {
        return TopicFilter::all();
    }
    let caller = caller.clone();
    TopicFilter::only(move |topic| caller.has_topic(topic))
}

/// Refuses what is about a topic that the key is not for.
pub(super) fn check_topic(caller: &Caller, topic: &str, place: &str) -> Result<(), Problem> {
    if caller.has_topic(topic) {
        return Ok(());
    }
    Err(Problem::at(
        Kind::NotAllowed,
        place,
        format!("{place}: the key is not for topic {topic:?}"),
    ))
}
