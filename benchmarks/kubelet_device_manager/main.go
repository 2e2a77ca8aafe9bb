// The kubelet's own device manager, without the rest of the kubelet: how long it takes until a resource is allocatable
// again after a restart, with everything allocated. `go build` takes some minutes. It uses /var/lib/kubelet/device-plugins,
// so run it in a mount namespace of its own, beside `confcom device-plugin`:
//
//	unshare -m sh -c 'mount -t tmpfs tmpfs /var/lib; mkdir -p /var/lib/kubelet/device-plugins; ...'
//	kubelet-device-manager -n 3072 -pods 8 -units 384             first start; allocates to all pods
//	kubelet-device-manager -n 3072 -pods 8 -units 384 -resume     again, with the checkpoint of the first
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/kubelet/cm/containermap"
	"k8s.io/kubernetes/pkg/kubelet/cm/devicemanager"
	"k8s.io/kubernetes/pkg/kubelet/cm/topologymanager"
)

type ready struct{}

func (ready) AddSource(string) {}
func (ready) AllReady() bool   { return true }

func makePod(n int, res string, k int64) *v1.Pod {
	l := v1.ResourceList{v1.ResourceName(res): *resource.NewQuantity(k, resource.DecimalSI)}
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("p%d", n), Namespace: "a", UID: types.UID(fmt.Sprintf("uid-%d", n))},
		Spec: v1.PodSpec{Containers: []v1.Container{{Name: "main", Resources: v1.ResourceRequirements{Limits: l, Requests: l}}}}}
}

func main() {
	res := flag.String("resource", "kubernetes.azure.com/sgx_epc_mem_in_MiB", "")
	n := flag.Int64("n", 168, "")
	pods := flag.Int("pods", 1, "")
	units := flag.Int64("units", 10, "")
	resume := flag.Bool("resume", false, "")
	klog.InitFlags(nil)
	flag.Parse()
	logger := klog.TODO()
	m, err := devicemanager.NewManagerImpl(nil, topologymanager.NewFakeManager())
	if err != nil {
		panic(err)
	}
	var active []*v1.Pod
	if *resume {
		for i := 0; i < *pods; i++ {
			active = append(active, makePod(i, *res, *units))
		}
	}
	start := time.Now()
	if err := m.Start(logger, func() []*v1.Pod { return active }, ready{}, containermap.NewContainerMap(), sets.New[string]()); err != nil {
		panic(err)
	}
	for {
		capacity, allocatable, _ := m.GetCapacity()
		c, a := capacity[v1.ResourceName(*res)], allocatable[v1.ResourceName(*res)]
		if a.Value() == *n {
			fmt.Printf("allocatable %d of %d after %.3f s\n", a.Value(), c.Value(), time.Since(start).Seconds())
			break
		}
		if time.Since(start) > 300*time.Second {
			fmt.Println("gave up", a.Value())
			os.Exit(1)
		}
		time.Sleep(5 * time.Millisecond)
	}
	if !*resume {
		t := time.Now()
		for i := 0; i < *pods; i++ {
			pod := makePod(i, *res, *units)
			active = append(active, pod)
			if err := m.Allocate(pod, &pod.Spec.Containers[0]); err != nil {
				panic(err)
			}
			if i == 0 {
				o, err := m.GetDeviceRunContainerOptions(context.Background(), pod, &pod.Spec.Containers[0])
				if err != nil {
					panic(err)
				}
				fmt.Printf("container: %+v\n", *o)
			}
		}
		fmt.Printf("%d pods x %d units allocated in %.3f s\n", *pods, *units, time.Since(t).Seconds())
	}
	over := makePod(100000, *res, *n)
	err = m.Allocate(over, &over.Spec.Containers[0])
	fmt.Println("beyond:", err)
	m.Stop(logger)
}
