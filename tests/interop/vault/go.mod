module confcom.test/vault

go 1.25.3

require (
	github.com/hashicorp/go-hclog v1.6.3
	github.com/hashicorp/vault v1.21.4
	github.com/hashicorp/vault-plugin-auth-jwt v0.25.0
	github.com/hashicorp/vault-plugin-secrets-kv v0.25.0
	github.com/hashicorp/vault/sdk v0.21.0
)

// Vault is built with the sdk of its own tree, which has no release: this is the nearest.
replace github.com/hashicorp/vault/sdk => github.com/hashicorp/vault/sdk v0.20.0
