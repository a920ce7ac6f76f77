// SPDX-License-Identifier: Apache-2.0

internal import Coordinator
internal import DERPRelay
internal import Glibc
internal import LinuxIO

/// Numbers of a program as Prometheus text.
enum Metrics {
    /// One number.
    static func sample(_ name: String, _ kind: String, _ value: some CustomStringConvertible) -> String {
        "# TYPE \(name) \(kind)\n\(name) \(value)\n"
    }

    /// Questions to the STUN responder.
    static func text(_ counters: STUNResponder.Counters) -> String {
        "# TYPE coder_stun_requests_total counter\n"
            + "coder_stun_requests_total{disposition=\"answered\"} \(counters.answered)\n"
            + "coder_stun_requests_total{disposition=\"ignored\"} \(counters.ignored)\n"
    }

    /// When a listener's certificate is void.
    static func text(_ certificates: Certificates) -> String {
        sample("coder_tls_certificate_expiry_seconds", "gauge", certificates.expiry)
    }

    /// Memory and descriptors of this process, under the names that everybody uses.
    static var process: String {
        var text = ""
        // Pages: all, resident, …
        if let pages = FileReader.text("/proc/self/statm")?.split(separator: " "), pages.count > 1,
            let resident = Int(pages[1])
        {
            text += sample("process_resident_memory_bytes", "gauge", resident * sysconf(Int32(_SC_PAGESIZE)))
        }
        text += sample("process_open_fds", "gauge", openDescriptors)
        return text + sample("process_max_fds", "gauge", DescriptorLimit.current)
    }

    private static var openDescriptors: Int {
        guard let folder = opendir("/proc/self/fd") else { return 0 }
        defer { closedir(folder) }
        // Without the two dots, and the descriptor of the folder itself.
        var count = -3
        while readdir(folder) != nil { count += 1 }
        return count
    }
}

/// What the server's own listener for Prometheus answers: `/metrics`, and nothing else.
struct MetricsResponder: Connection.Responder {
    let mesh: MeshServices
    let http: HTTPCounters
    let certificates: Certificates?

    func respond(to call: Call) async -> Reply {
        guard ["GET", "HEAD"].contains(call.head.method),
            call.head.target.prefix(while: { $0 != "?" }) == "/metrics"
        else { return .text("404 page not found\n", status: 404) }
        var text = mesh.relay?.counters.prometheusText ?? ""
        if let counters = mesh.stunCounters { text += Metrics.text(counters) }
        let coordinator = mesh.coordinator
        text += Metrics.sample("coder_coordinator_peers", "gauge", await coordinator.peerCount)
        text += Metrics.sample("coder_coordinator_refusals_total", "counter", await coordinator.refusals)
        text += Metrics.sample("coder_coordinator_slow_peers_total", "counter", await coordinator.slowPeers)
        text += Metrics.sample("coder_rpc_sessions", "gauge", mesh.sessions.count)
        text += Metrics.sample("coder_rpc_sessions_failed_total", "counter", mesh.sessions.failures)
        text += http.prometheusText
        if let certificates { text += Metrics.text(certificates) }
        return .text(text + Metrics.process, type: Self.type)
    }

    /// Prometheus text, version 0.0.4.
    static let type = "text/plain; version=0.0.4; charset=utf-8"
}
