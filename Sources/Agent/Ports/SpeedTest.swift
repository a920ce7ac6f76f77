// SPDX-License-Identifier: Apache-2.0

internal import FoundationEssentials
internal import Glibc
package import LinuxIO

/// Port 3: Tailscale's speed test, version 2. One JSON line each way, then random blocks. agent.md §5.2.
package enum SpeedTest {
    /// 2 MiB per block. agent.md §5.2.
    private static let blockSize = 2 << 20
    /// 30 s: longest test that is granted.
    private static let longest: UInt64 = 30_000_000_000
    /// 4 KiB: longest request line.
    private static let lineLimit = 4_096

    private struct Request: Decodable {
        var version: Int
        var time: UInt64
        /// 0: the client receives; 1: it sends.
        var direction: Int
    }

    /// Serves one test. Blocks for as long as it takes: call on a thread of its own.
    package static func serve(_ socket: consuming OwnedDescriptor) {
        let number = socket.number
        setTimeout(number, SO_RCVTIMEO, seconds: 10)
        setTimeout(number, SO_SNDTIMEO, seconds: 10)
        guard let line = readLine(number),
            let request = try? JSONDecoder().decode(Request.self, from: Data(line))
        else { return answer(number, #"{"error":"malformed request"}"#) }
        guard request.version == 2 else { return answer(number, #"{"error":"unsupported version"}"#) }
        guard 1...longest ~= request.time, 0...1 ~= request.direction else {
            return answer(number, #"{"error":"unsupported duration or direction"}"#)
        }
        answer(number, "{}")
        if request.direction == 0 {
            send(number, for: request.time)
        } else {
            setTimeout(number, SO_RCVTIMEO, seconds: Int(request.time * 4 / 1_000_000_000) + 1)
            drain(number, for: request.time * 4)
        }
    }

    private static func send(_ number: Int32, for nanoseconds: UInt64) {
        var generator = SystemRandomNumberGenerator()
        let words = (0..<blockSize / 8).map { _ in generator.next() }
        let block = words.withUnsafeBytes { Array($0) }
        let end = Clock.monotonicNanoseconds() + nanoseconds
        while Clock.monotonicNanoseconds() < end {
            var sent = 0
            while sent < block.count {
                let count = block.withUnsafeBytes {
                    Glibc.send(number, $0.baseAddress! + sent, $0.count - sent, Int32(MSG_NOSIGNAL))
                }
                guard count > 0 else { return }
                sent += count
                guard Clock.monotonicNanoseconds() < end else { return }
            }
        }
    }

    private static func drain(_ number: Int32, for nanoseconds: UInt64) {
        var buffer = [UInt8](repeating: 0, count: 256 << 10)
        let end = Clock.monotonicNanoseconds() + nanoseconds
        while Clock.monotonicNanoseconds() < end, Glibc.read(number, &buffer, buffer.count) > 0 {}
    }

    private static func readLine(_ number: Int32) -> [UInt8]? {
        var line: [UInt8] = []
        var byte: UInt8 = 0
        // Byte by byte: what follows the line belongs to the test.
        while line.count < lineLimit, Glibc.read(number, &byte, 1) == 1 {
            if byte == 10 { return line }
            line.append(byte)
        }
        return nil
    }

    private static func answer(_ number: Int32, _ json: String) {
        let bytes = Array((json + "\n").utf8)
        _ = bytes.withUnsafeBytes {
            Glibc.send(number, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
        }
    }

    private static func setTimeout(_ number: Int32, _ option: Int32, seconds: Int) {
        var time = timeval(tv_sec: seconds, tv_usec: 0)
        setsockopt(number, SOL_SOCKET, option, &time, socklen_t(MemoryLayout<timeval>.size))
    }
}
