// SPDX-License-Identifier: Apache-2.0

/// The schema's history. Never change a published entry: append a new one. Names follow upstream's tables, so
/// that an existing deployment can be imported.
enum Migrations {
    static let all: [[String]] = [foundation, edgeRelays]

    private static let foundation: [String] = identity + provisioning + workspaces + agents

    private static let edgeRelays = [
        """
        CREATE TABLE workspace_proxies (
            id uuid PRIMARY KEY, name text NOT NULL, display_name text NOT NULL DEFAULT '',
            icon text NOT NULL DEFAULT '', url text NOT NULL DEFAULT '',
            wildcard_hostname text NOT NULL DEFAULT '', created_at timestamptz NOT NULL,
            updated_at timestamptz NOT NULL, deleted boolean NOT NULL DEFAULT false,
            token_hashed_secret bytea NOT NULL, region_id serial NOT NULL UNIQUE,
            derp_enabled boolean NOT NULL DEFAULT true, derp_only boolean NOT NULL DEFAULT false,
            version text NOT NULL DEFAULT '')
        """,
        "CREATE UNIQUE INDEX workspace_proxies_name ON workspace_proxies (lower(name)) WHERE NOT deleted",
    ]

    private static let identity = [
        """
        CREATE TABLE site_configs (key varchar(256) PRIMARY KEY, value text NOT NULL)
        """,
        """
        CREATE TABLE crypto_keys (
            feature text NOT NULL, sequence int NOT NULL, secret text, secret_key_id text,
            starts_at timestamptz NOT NULL, deletes_at timestamptz, PRIMARY KEY (feature, sequence))
        """,
        """
        CREATE TABLE organizations (
            id uuid PRIMARY KEY, name text NOT NULL, description text NOT NULL DEFAULT '',
            created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL,
            is_default boolean NOT NULL DEFAULT false, display_name text NOT NULL, icon text NOT NULL DEFAULT '',
            deleted boolean NOT NULL DEFAULT false, workspace_sharing_disabled boolean NOT NULL DEFAULT false)
        """,
        "CREATE UNIQUE INDEX organizations_name ON organizations (lower(name)) WHERE NOT deleted",
        "CREATE UNIQUE INDEX organizations_default ON organizations (is_default) WHERE is_default",
        """
        CREATE TABLE users (
            id uuid PRIMARY KEY, email text NOT NULL, username text NOT NULL DEFAULT '',
            hashed_password bytea NOT NULL, created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL,
            status text NOT NULL DEFAULT 'dormant' CHECK (status IN ('active', 'dormant', 'suspended')),
            rbac_roles text[] NOT NULL DEFAULT '{}', login_type text NOT NULL DEFAULT 'password',
            avatar_url text NOT NULL DEFAULT '', deleted boolean NOT NULL DEFAULT false,
            last_seen_at timestamptz NOT NULL DEFAULT '0001-01-01 00:00:00+00',
            quiet_hours_schedule text NOT NULL DEFAULT '', name text NOT NULL DEFAULT '',
            is_system boolean NOT NULL DEFAULT false)
        """,
        "CREATE UNIQUE INDEX users_email ON users (lower(email)) WHERE NOT deleted",
        "CREATE UNIQUE INDEX users_username ON users (lower(username)) WHERE NOT deleted",
        """
        CREATE TABLE organization_members (
            user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
            organization_id uuid NOT NULL REFERENCES organizations ON DELETE CASCADE,
            created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL, roles text[] NOT NULL DEFAULT '{}',
            PRIMARY KEY (organization_id, user_id))
        """,
        "CREATE INDEX organization_members_user ON organization_members (user_id)",
        """
        CREATE TABLE api_keys (
            id text PRIMARY KEY, hashed_secret bytea NOT NULL,
            user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE, last_used timestamptz NOT NULL,
            expires_at timestamptz NOT NULL, created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL,
            login_type text NOT NULL, lifetime_seconds bigint NOT NULL DEFAULT 86400,
            ip_address inet NOT NULL DEFAULT '0.0.0.0', token_name text NOT NULL DEFAULT '',
            scopes text[] NOT NULL, allow_list text[] NOT NULL)
        """,
        "CREATE INDEX api_keys_user ON api_keys (user_id)",
        "CREATE UNIQUE INDEX api_keys_name ON api_keys (user_id, token_name) WHERE login_type = 'token'",
        """
        CREATE TABLE gitsshkeys (
            user_id uuid PRIMARY KEY REFERENCES users ON DELETE CASCADE, created_at timestamptz NOT NULL,
            updated_at timestamptz NOT NULL, private_key text NOT NULL, public_key text NOT NULL)
        """,
    ]

    private static let provisioning = [
        """
        CREATE TABLE provisioner_jobs (
            id uuid PRIMARY KEY, created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL,
            started_at timestamptz, canceled_at timestamptz, completed_at timestamptz, error text,
            organization_id uuid NOT NULL REFERENCES organizations ON DELETE CASCADE, initiator_id uuid NOT NULL,
            provisioner text NOT NULL, storage_method text NOT NULL, type text NOT NULL, input jsonb NOT NULL,
            worker_id uuid, file_id uuid NOT NULL, tags jsonb NOT NULL DEFAULT '{"scope": "organization"}',
            error_code text, logs_length int NOT NULL DEFAULT 0, logs_overflowed boolean NOT NULL DEFAULT false)
        """,
        """
        CREATE TABLE provisioner_job_logs (
            id bigserial PRIMARY KEY, job_id uuid NOT NULL REFERENCES provisioner_jobs ON DELETE CASCADE,
            created_at timestamptz NOT NULL, source text NOT NULL, level text NOT NULL,
            stage varchar(128) NOT NULL, output varchar(1024) NOT NULL)
        """,
        "CREATE INDEX provisioner_job_logs_job ON provisioner_job_logs (job_id, id)",
        """
        CREATE TABLE templates (
            id uuid PRIMARY KEY, created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL,
            organization_id uuid NOT NULL REFERENCES organizations ON DELETE CASCADE,
            deleted boolean NOT NULL DEFAULT false, name varchar(64) NOT NULL, provisioner text NOT NULL,
            active_version_id uuid NOT NULL, description varchar(128) NOT NULL DEFAULT '',
            default_ttl bigint NOT NULL DEFAULT 0, created_by uuid NOT NULL REFERENCES users ON DELETE RESTRICT,
            icon varchar(256) NOT NULL DEFAULT '', display_name varchar(64) NOT NULL DEFAULT '',
            allow_user_cancel_workspace_jobs boolean NOT NULL DEFAULT true,
            allow_user_autostart boolean NOT NULL DEFAULT true, allow_user_autostop boolean NOT NULL DEFAULT true,
            failure_ttl bigint NOT NULL DEFAULT 0, time_til_dormant bigint NOT NULL DEFAULT 0,
            time_til_dormant_autodelete bigint NOT NULL DEFAULT 0,
            require_active_version boolean NOT NULL DEFAULT false, deprecated text NOT NULL DEFAULT '',
            activity_bump bigint NOT NULL DEFAULT 3600000000000,
            max_port_sharing_level text NOT NULL DEFAULT 'owner',
            use_classic_parameter_flow boolean NOT NULL DEFAULT false, cors_behavior text NOT NULL DEFAULT 'simple')
        """,
        "CREATE UNIQUE INDEX templates_name ON templates (organization_id, lower(name)) WHERE NOT deleted",
        """
        CREATE TABLE template_versions (
            id uuid PRIMARY KEY, template_id uuid REFERENCES templates ON DELETE CASCADE,
            organization_id uuid NOT NULL REFERENCES organizations ON DELETE CASCADE,
            created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL, name varchar(64) NOT NULL,
            readme text NOT NULL DEFAULT '', job_id uuid NOT NULL REFERENCES provisioner_jobs,
            created_by uuid NOT NULL REFERENCES users ON DELETE RESTRICT, message text NOT NULL DEFAULT '',
            archived boolean NOT NULL DEFAULT false, has_ai_task boolean, has_external_agent boolean,
            UNIQUE (template_id, name))
        """,
    ]

    private static let workspaces = [
        """
        CREATE TABLE workspaces (
            id uuid PRIMARY KEY, created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL,
            owner_id uuid NOT NULL REFERENCES users ON DELETE RESTRICT,
            organization_id uuid NOT NULL REFERENCES organizations ON DELETE RESTRICT,
            template_id uuid NOT NULL REFERENCES templates ON DELETE RESTRICT,
            deleted boolean NOT NULL DEFAULT false, name varchar(64) NOT NULL, autostart_schedule text, ttl bigint,
            last_used_at timestamptz NOT NULL DEFAULT '0001-01-01 00:00:00+00', dormant_at timestamptz,
            deleting_at timestamptz, automatic_updates text NOT NULL DEFAULT 'never',
            favorite boolean NOT NULL DEFAULT false, next_start_at timestamptz)
        """,
        "CREATE UNIQUE INDEX workspaces_name ON workspaces (owner_id, lower(name)) WHERE NOT deleted",
        """
        CREATE TABLE workspace_builds (
            id uuid PRIMARY KEY, created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL,
            workspace_id uuid NOT NULL REFERENCES workspaces ON DELETE CASCADE,
            template_version_id uuid NOT NULL REFERENCES template_versions ON DELETE CASCADE,
            build_number int NOT NULL, transition text NOT NULL CHECK (transition IN ('start', 'stop', 'delete')),
            initiator_id uuid NOT NULL, provisioner_state bytea,
            job_id uuid NOT NULL UNIQUE REFERENCES provisioner_jobs ON DELETE CASCADE,
            deadline timestamptz NOT NULL DEFAULT '0001-01-01 00:00:00+00',
            reason text NOT NULL DEFAULT 'initiator', daily_cost int NOT NULL DEFAULT 0,
            max_deadline timestamptz NOT NULL DEFAULT '0001-01-01 00:00:00+00', template_version_preset_id uuid,
            has_ai_task boolean, has_external_agent boolean, UNIQUE (workspace_id, build_number))
        """,
        """
        CREATE TABLE workspace_build_parameters (
            workspace_build_id uuid NOT NULL REFERENCES workspace_builds ON DELETE CASCADE, name text NOT NULL,
            value text NOT NULL, UNIQUE (workspace_build_id, name))
        """,
        """
        CREATE TABLE workspace_resources (
            id uuid PRIMARY KEY, created_at timestamptz NOT NULL,
            job_id uuid NOT NULL REFERENCES provisioner_jobs ON DELETE CASCADE, transition text NOT NULL,
            type varchar(192) NOT NULL, name varchar(64) NOT NULL, hide boolean NOT NULL DEFAULT false,
            icon varchar(256) NOT NULL DEFAULT '', instance_type varchar(256), daily_cost int NOT NULL DEFAULT 0,
            module_path text)
        """,
        "CREATE INDEX workspace_resources_job ON workspace_resources (job_id)",
    ]

    private static let agents = [
        """
        CREATE TABLE workspace_agents (
            id uuid PRIMARY KEY, created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL,
            name varchar(64) NOT NULL, first_connected_at timestamptz, last_connected_at timestamptz,
            disconnected_at timestamptz,
            resource_id uuid NOT NULL REFERENCES workspace_resources ON DELETE CASCADE,
            auth_token uuid NOT NULL UNIQUE, auth_instance_id varchar, architecture varchar(64) NOT NULL,
            environment_variables jsonb, operating_system varchar(64) NOT NULL,
            directory varchar(4096) NOT NULL DEFAULT '', version text NOT NULL DEFAULT '',
            connection_timeout_seconds int NOT NULL DEFAULT 0, troubleshooting_url text NOT NULL DEFAULT '',
            motd_file text NOT NULL DEFAULT '', lifecycle_state text NOT NULL DEFAULT 'created',
            expanded_directory varchar(4096) NOT NULL DEFAULT '',
            logs_length int NOT NULL DEFAULT 0
                CONSTRAINT max_logs_length CHECK (logs_length <= 1048576),
            logs_overflowed boolean NOT NULL DEFAULT false, started_at timestamptz, ready_at timestamptz,
            subsystems text[] NOT NULL DEFAULT '{}', display_apps text[] NOT NULL
                DEFAULT '{vscode,vscode_insiders,web_terminal,ssh_helper,port_forwarding_helper}',
            api_version text NOT NULL DEFAULT '', display_order int NOT NULL DEFAULT 0,
            parent_id uuid REFERENCES workspace_agents ON DELETE CASCADE,
            api_key_scope text NOT NULL DEFAULT 'all', deleted boolean NOT NULL DEFAULT false)
        """,
        "CREATE INDEX workspace_agents_resource ON workspace_agents (resource_id)",
        """
        CREATE TABLE workspace_agent_log_sources (
            workspace_agent_id uuid NOT NULL REFERENCES workspace_agents ON DELETE CASCADE, id uuid NOT NULL,
            created_at timestamptz NOT NULL, display_name varchar(127) NOT NULL, icon text NOT NULL,
            PRIMARY KEY (workspace_agent_id, id))
        """,
        """
        CREATE TABLE workspace_agent_logs (
            id bigserial PRIMARY KEY, agent_id uuid NOT NULL REFERENCES workspace_agents ON DELETE CASCADE,
            created_at timestamptz NOT NULL, output varchar(1048576) NOT NULL, level text NOT NULL DEFAULT 'info',
            log_source_id uuid NOT NULL)
        """,
        "CREATE INDEX workspace_agent_logs_agent ON workspace_agent_logs (agent_id, id)",
        """
        CREATE TABLE connection_logs (
            id uuid PRIMARY KEY, connect_time timestamptz NOT NULL, organization_id uuid NOT NULL,
            workspace_owner_id uuid NOT NULL, workspace_id uuid NOT NULL REFERENCES workspaces ON DELETE CASCADE,
            workspace_name text NOT NULL, agent_name text NOT NULL, type text NOT NULL, ip inet, code int,
            user_agent text, user_id uuid, slug_or_port text, connection_id uuid, disconnect_time timestamptz,
            disconnect_reason text, UNIQUE (connection_id, workspace_id, agent_name))
        """,
    ]
}
