// SPDX-License-Identifier: Apache-2.0

/// The result of `body`, or `failure` when it takes longer. `body` is cancelled then, and has to mind that.
func limited<Value: Sendable>(
    to limit: Duration, or failure: any Error, _ body: @escaping @Sendable () async throws -> Value
) async throws -> Value {
    try await withThrowingTaskGroup(of: Value.self) { group in
        group.addTask { try await body() }
        group.addTask {
            try await Task.sleep(for: limit)
            throw failure
        }
        defer { group.cancelAll() }
        guard let result = try await group.next() else { throw failure }
        return result
    }
}
