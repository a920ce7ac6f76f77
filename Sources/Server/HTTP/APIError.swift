// SPDX-License-Identifier: Apache-2.0

/// An answer that is not a success, in the API's shape. Everything that a client may see of a failure is in
/// here; whatever else is thrown becomes a 500 without detail.
struct APIError: Error, Sendable, Equatable {
    /// One refused field of a request.
    struct Validation: Sendable, Equatable {
        /// JSON key of the request, or name of the query or path parameter.
        var field: String
        var detail: String
    }

    var status: Int
    /// A sentence for people.
    var message: String
    var detail = ""
    var validations: [Validation] = []
    /// Further fields of the answer's head.
    var fields: [RequestHead.Field] = []

    init(_ status: Int, _ message: String, detail: String = "", validations: [Validation] = []) {
        self.status = status
        self.message = message
        self.detail = detail
        self.validations = validations
    }

    /// 400 with one named field.
    static func invalid(_ field: String, _ detail: String, message: String = "Validation failed.") -> APIError
    {
        APIError(400, message, validations: [Validation(field: field, detail: detail)])
    }

    /// Unknown, and not readable by the caller: the same answer for both.
    static let notFound = APIError(
        404, "Resource not found or you do not have access to this resource")
    /// No such path.
    static let routeNotFound = APIError(404, "Route not found.")
    /// Visible, but not allowed.
    static let forbidden = APIError(
        403, "Forbidden.",
        detail: "You don't have permission to view this content. If you believe this is a mistake, "
            + "please contact your administrator or try signing in with different credentials.")

    /// 401 in the wording of the web UI, which shows it as it is.
    static func signedOut(_ detail: String) -> APIError {
        APIError(
            401, "You are signed out or your session has expired. Please sign in again to continue.",
            detail: detail)
    }

    /// 500; the cause goes to the log only.
    static let `internal` = APIError(500, "An internal server error occurred.")
    /// 500 in the wording that clients compare.
    static let databaseNotReachable = APIError(500, "database not reachable")

    /// The body of the answer.
    var json: JSON {
        var body: JSON = ["message": JSON(message)]
        body.addUnlessEmpty("detail", detail)
        if !validations.isEmpty {
            body.add(
                "validations",
                .array(validations.map { ["field": JSON($0.field), "detail": JSON($0.detail)] }))
        }
        return body
    }
}
