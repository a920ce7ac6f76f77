// SPDX-License-Identifier: Apache-2.0

/// Where authentication (RFC 4252) stands.
struct Authentication {
    var policy: SSHConnection.AuthenticationPolicy
    var user: String
    /// Client: requests are out. Server: the service was requested.
    var isStarted = false
    var isDone = false
    var attempts = 0
    /// Server: the caller owes an answer.
    var isAsking = false
}

extension SSHConnection {
    static let userauthService = "ssh-userauth", connectionService = "ssh-connection"

    mutating func startAuthentication() throws(SSHError) {
        authentication.isStarted = true
        let user = authentication.user
        try transport.send {
            $0.append(Message.serviceRequest)
            $0.appendString(Self.userauthService)
        }
        try transport.send {
            $0.append(Message.userauthRequest)
            $0.appendString(user)
            $0.appendString(Self.connectionService)
            $0.appendString("none")
        }
        if opensSessionEarly { earlySession = requestChannel(.session) }
    }

    mutating func handleAuthentication(_ type: UInt8, _ reader: inout WireReader) throws -> SSHEvent? {
        switch (type, transport.role) {
        case (Message.serviceRequest, .server):
            let service = try reader.text(limit: 64)
            guard service == Self.userauthService else { throw SSHError.unexpectedMessage(type) }
            authentication.isStarted = true
            try transport.send {
                $0.append(Message.serviceAccept)
                $0.appendString(service)
            }
            return nil
        case (Message.userauthRequest, .server):
            return try receiveUserRequest(&reader)
        case (Message.serviceAccept, .client):
            return nil
        case (Message.userauthBanner, .client):
            transport.counters.ignoredMessages += 1
            return nil
        case (Message.userauthSuccess, .client):
            guard authentication.isStarted, !authentication.isDone else {
                throw SSHError.unexpectedMessage(type)
            }
            authentication.isDone = true
            return .authenticated(user: authentication.user)
        case (Message.userauthFailure, .client):
            throw SSHError.authenticationRefused(
                methods: try reader.nameList(limit: transport.limits.nameBytes))
        default:
            throw SSHError.unexpectedMessage(type)
        }
    }

    private mutating func receiveUserRequest(_ reader: inout WireReader) throws -> SSHEvent? {
        let limit = transport.limits.nameBytes
        let user = try reader.text(limit: limit)
        let service = try reader.text(limit: limit)
        let method = try reader.text(limit: limit)
        // RFC 4252 §5.1: requests after success are silently ignored.
        if authentication.isDone { return nil }
        guard authentication.isStarted, !authentication.isAsking else {
            throw SSHError.unexpectedMessage(Message.userauthRequest)
        }
        authentication.attempts += 1
        guard authentication.attempts <= transport.limits.authenticationAttempts else {
            throw SSHError.limitExceeded("authentication attempts")
        }
        guard service == Self.connectionService else {
            try refuseUser()
            return nil
        }
        authentication.user = user
        guard case .acceptNone = authentication.policy else {
            authentication.isAsking = true
            return .authenticationRequested(user: user, method: method)
        }
        guard method == "none" else {
            try refuseUser()
            return nil
        }
        return try admit()
    }

    private mutating func admit() throws(SSHError) -> SSHEvent {
        authentication.isDone = true
        try transport.send { $0.append(Message.userauthSuccess) }
        return .authenticated(user: authentication.user)
    }

    private mutating func refuseUser() throws(SSHError) {
        transport.counters.refusals += 1
        try transport.send {
            $0.append(Message.userauthFailure)
            $0.appendString("none")
            $0.append(false)
        }
    }

    /// Server: answers `.authenticationRequested`. After true, channels may come; no further event says so.
    public mutating func answerAuthentication(accept: Bool) {
        precondition(authentication.isAsking, "nothing was asked")
        authentication.isAsking = false
        do {
            if accept { _ = try admit() } else { try refuseUser() }
        } catch {
            lateFailure = error
        }
    }
}
