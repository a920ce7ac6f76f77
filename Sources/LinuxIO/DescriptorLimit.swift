// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import Synchronization

/// How many descriptors this process may have. Servers need many, but programs that still use `select(2)` or close
/// all possible descriptors suffer from a high limit: children get the one that this process was started with.
public enum DescriptorLimit {
    /// What the process was started with, once it was raised. State of the process, because the limit is.
    private static let original = Mutex<rlimit?>(nil)
    private static let kind = __rlimit_resource_t(RLIMIT_NOFILE.rawValue)

    /// How many this process may have now.
    public static var current: Int {
        var limit = rlimit()
        guard getrlimit(kind, &limit) == 0 else { return 1_024 }
        return Int(clamping: limit.rlim_cur)
    }

    /// Lets this process have as many as the system allows it. May be called again.
    public static func raise() {
        original.withLock { original in
            var limit = rlimit()
            guard original == nil, getrlimit(kind, &limit) == 0, limit.rlim_cur < limit.rlim_max else {
                return
            }
            original = limit
            limit.rlim_cur = limit.rlim_max
            _ = setrlimit(kind, &limit)
        }
    }

    /// Runs `spawn`, whose child inherits the limit from before `raise`. For that moment other threads get no new
    /// descriptor beyond it: whoever accepts connections tries again.
    public static func withOriginal<Result>(_ spawn: () -> Result) -> Result {
        original.withLock { original in
            guard var low = original else { return spawn() }
            var high = rlimit()
            guard getrlimit(kind, &high) == 0, setrlimit(kind, &low) == 0 else { return spawn() }
            defer { _ = setrlimit(kind, &high) }
            return spawn()
        }
    }
}
