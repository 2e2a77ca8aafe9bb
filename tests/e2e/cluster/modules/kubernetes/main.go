// Multi-call: kubelet, kube-apiserver, kube-scheduler, kube-controller-manager, kube-proxy, kubectl.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	_ "time/tzdata"

	"github.com/spf13/cobra"

	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"

	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	kcm "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"

	kubectl "k8s.io/kubectl/pkg/cmd"
)

func main() {
	name := filepath.Base(os.Args[0])
	var c *cobra.Command
	switch name {
	case "kubelet":
		c = command(kubelet.NewKubeletCommand)
	case "kube-apiserver":
		c = apiserver.NewAPIServerCommand()
	case "kube-scheduler":
		c = scheduler.NewSchedulerCommand()
	case "kube-controller-manager":
		c = kcm.NewControllerManagerCommand()
	case "kube-proxy":
		c = proxy.NewProxyCommand()
	case "kubectl":
		c = kubectl.NewDefaultKubectlCommand()
	default:
		fmt.Fprintln(os.Stderr, "call me as kubelet, kube-apiserver, kube-scheduler, kube-controller-manager, kube-proxy or kubectl")
		os.Exit(2)
	}
	os.Exit(cli.Run(c))
}

// command calls what makes a program: with a context, or without one as the kubelet's before Kubernetes 1.33 (one source for all).
func command(maker any) *cobra.Command {
	if old, ok := maker.(func() *cobra.Command); ok {
		return old()
	}
	return maker.(func(context.Context) *cobra.Command)(context.Background())
}
