// SPDX-License-Identifier: Apache-2.0

/// Message numbers of RFC 4253 §12, RFC 4252 §6, RFC 4254 §9.
enum Message {
    static let disconnect: UInt8 = 1
    static let ignore: UInt8 = 2
    static let unimplemented: UInt8 = 3
    static let debug: UInt8 = 4
    static let serviceRequest: UInt8 = 5
    static let serviceAccept: UInt8 = 6
    static let extInfo: UInt8 = 7  // RFC 8308
    static let kexInit: UInt8 = 20
    static let newKeys: UInt8 = 21
    static let kexECDHInit: UInt8 = 30  // RFC 5656 §7.1
    static let kexECDHReply: UInt8 = 31
    static let userauthRequest: UInt8 = 50
    static let userauthFailure: UInt8 = 51
    static let userauthSuccess: UInt8 = 52
    static let userauthBanner: UInt8 = 53
    static let globalRequest: UInt8 = 80
    static let requestSuccess: UInt8 = 81
    static let requestFailure: UInt8 = 82
    static let channelOpen: UInt8 = 90
    static let channelOpenConfirmation: UInt8 = 91
    static let channelOpenFailure: UInt8 = 92
    static let channelWindowAdjust: UInt8 = 93
    static let channelData: UInt8 = 94
    static let channelExtendedData: UInt8 = 95
    static let channelEOF: UInt8 = 96
    static let channelClose: UInt8 = 97
    static let channelRequest: UInt8 = 98
    static let channelSuccess: UInt8 = 99
    static let channelFailure: UInt8 = 100
    static let ping: UInt8 = 192  // OpenSSH PROTOCOL §1.9
    static let pong: UInt8 = 193
}

/// Which end of the connection this is.
enum Role: Sendable {
    case client
    case server
}
