// SPDX-License-Identifier: Apache-2.0

public import SwiftProtobuf

/// The name of a call with the types of its messages. Whether either side streams is up to the function that uses it.
public struct RPCMethod<Request: Message, Response: Message>: Sendable {
    /// Wire name: `/<package>.<Service>/<RPC>`.
    public let name: String

    public init(_ name: String) { self.name = name }
}

/// Service `coder.tailnet.v2.Tailnet`. coordinator.md §1.
public enum TailnetMethods {
    private static let service = "/coder.tailnet.v2.Tailnet/"

    /// Unary.
    public static let postTelemetry = RPCMethod<TailnetTelemetryRequest, TailnetTelemetryResponse>(
        service + "PostTelemetry")
    /// Server stream.
    public static let streamDERPMaps = RPCMethod<TailnetStreamDERPMapsRequest, TailnetDERPMap>(
        service + "StreamDERPMaps")
    /// Unary.
    public static let refreshResumeToken = RPCMethod<
        TailnetRefreshResumeTokenRequest, TailnetRefreshResumeTokenResponse
    >(service + "RefreshResumeToken")
    /// Both sides stream.
    public static let coordinate = RPCMethod<TailnetCoordinateRequest, TailnetCoordinateResponse>(
        service + "Coordinate")
    /// Server stream.
    public static let workspaceUpdates = RPCMethod<TailnetWorkspaceUpdatesRequest, TailnetWorkspaceUpdate>(
        service + "WorkspaceUpdates")
}

/// Service `coder.agent.v2.Agent`: all unary. agent.md §1.
public enum AgentMethods {
    private static let service = "/coder.agent.v2.Agent/"

    public static let getManifest = RPCMethod<AgentGetManifestRequest, AgentManifest>(service + "GetManifest")
    public static let getServiceBanner = RPCMethod<AgentGetServiceBannerRequest, AgentServiceBanner>(
        service + "GetServiceBanner")
    public static let updateStats = RPCMethod<AgentUpdateStatsRequest, AgentUpdateStatsResponse>(
        service + "UpdateStats")
    public static let updateLifecycle = RPCMethod<AgentUpdateLifecycleRequest, AgentLifecycle>(
        service + "UpdateLifecycle")
    public static let batchUpdateAppHealths = RPCMethod<
        AgentBatchUpdateAppHealthRequest, AgentBatchUpdateAppHealthResponse
    >(service + "BatchUpdateAppHealths")
    public static let updateStartup = RPCMethod<AgentUpdateStartupRequest, AgentStartup>(
        service + "UpdateStartup")
    public static let batchUpdateMetadata = RPCMethod<
        AgentBatchUpdateMetadataRequest, AgentBatchUpdateMetadataResponse
    >(service + "BatchUpdateMetadata")
    public static let batchCreateLogs = RPCMethod<AgentBatchCreateLogsRequest, AgentBatchCreateLogsResponse>(
        service + "BatchCreateLogs")
    public static let getAnnouncementBanners = RPCMethod<
        AgentGetAnnouncementBannersRequest, AgentGetAnnouncementBannersResponse
    >(service + "GetAnnouncementBanners")
    public static let scriptCompleted = RPCMethod<
        AgentWorkspaceAgentScriptCompletedRequest, AgentWorkspaceAgentScriptCompletedResponse
    >(service + "ScriptCompleted")
    public static let getResourcesMonitoringConfiguration = RPCMethod<
        AgentGetResourcesMonitoringConfigurationRequest, AgentGetResourcesMonitoringConfigurationResponse
    >(service + "GetResourcesMonitoringConfiguration")
    public static let pushResourcesMonitoringUsage = RPCMethod<
        AgentPushResourcesMonitoringUsageRequest, AgentPushResourcesMonitoringUsageResponse
    >(service + "PushResourcesMonitoringUsage")
    public static let reportConnection = RPCMethod<AgentReportConnectionRequest, Google_Protobuf_Empty>(
        service + "ReportConnection")
    public static let createSubAgent = RPCMethod<AgentCreateSubAgentRequest, AgentCreateSubAgentResponse>(
        service + "CreateSubAgent")
    public static let deleteSubAgent = RPCMethod<AgentDeleteSubAgentRequest, AgentDeleteSubAgentResponse>(
        service + "DeleteSubAgent")
    public static let listSubAgents = RPCMethod<AgentListSubAgentsRequest, AgentListSubAgentsResponse>(
        service + "ListSubAgents")
    public static let reportBoundaryLogs = RPCMethod<
        AgentReportBoundaryLogsRequest, AgentReportBoundaryLogsResponse
    >(service + "ReportBoundaryLogs")
}
