// SPDX-License-Identifier: Apache-2.0

extension Store {
    /// How often long connections look whether their user may still have them.
    private static let checkSeconds = 30

    /// Returns when the key of that user is gone or expired, or the user no longer active, or the task is cancelled.
    func waitUntilInvalid(_ subject: Subject) async {
        while await isValid(subject) {
            do { try await Task.sleep(for: .seconds(Self.checkSeconds)) } catch { return }
        }
    }

    /// An unreachable database disconnects nobody.
    private func isValid(_ subject: Subject) async -> Bool {
        do {
            guard let key = try await apiKey(id: subject.keyID), key.expiresAt >= .now() else { return false }
            guard let user = try await user(id: subject.userID) else { return false }
            return !user.isDeleted && user.status != "suspended"
        } catch {
            return true
        }
    }
}
