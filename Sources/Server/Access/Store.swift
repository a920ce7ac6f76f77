// SPDX-License-Identifier: Apache-2.0

/// The server's tables, without any question of who asks. Routes never hold one of these for a user's request: they
/// get a `GuardedStore`. Each resource's folder extends it.
struct Store: Sendable {
    let database: any Database
}

/// The store as one user may see it. What the user may not read does not exist (404); what may be read but not
/// changed is refused (403). Each resource's folder extends it.
struct GuardedStore: Sendable {
    let store: Store
    let subject: Subject

    /// Throws 404 when the object may not even be read, 403 when only `action` is not allowed.
    func require(_ action: Subject.Action, _ object: Subject.Object) throws(APIError) {
        if subject.may(action, object) { return }
        throw subject.may(.read, object) ? APIError.forbidden : APIError.notFound
    }
}
